use crate::{
    bots::{self, edit},
    call::{Call, decode},
    chat, conversation, files,
    limit::Group::{self, Chat, Other, Public, Upload, Workflow},
    oauth,
    reply::{Refusal, Reply},
    state::{Shared, State},
    variables, workflow,
};

pub(crate) type Handler = fn(&Shared, &mut State, &Call) -> Result<Reply, Refusal>;

/// One endpoint of the platform.
#[derive(Debug)]
pub(crate) struct Route {
    /// Method and pattern, such as `GET /v1/bots/:bot_id`.
    pub(crate) name: &'static str,
    /// The permissions of which a token needs one (coze-platform.md, appendix B).
    pub(crate) permissions: &'static [&'static str],
    pub(crate) group: Group,
    pub(crate) handler: Handler,
}

const fn route(name: &'static str, permissions: &'static [&'static str], group: Group, handler: Handler) -> Route {
    Route { name, permissions, group, handler }
}

/// What lets a channel's app talk to bots, besides a route's own permission.
const CHANNEL: &str = "Connector.botChat";

/// What somebody thinks of a message.
const FEEDBACK: [&str; 2] = [
    "POST /v1/conversations/:conversation_id/messages/:message_id/feedback",
    "DELETE /v1/conversations/:conversation_id/messages/:message_id/feedback",
];

/// The endpoints; patterns with names after those without.
const ROUTES: &[Route] = &[
    route("POST /v3/chat", &["chat", CHANNEL], Chat, chat::create),
    route("GET /v3/chat/retrieve", &["getChat", CHANNEL], Other, chat::retrieve),
    route("POST /v3/chat/retrieve", &["getChat", CHANNEL], Other, chat::retrieve),
    route("GET /v3/chat/message/list", &["chat", "listMessage", CHANNEL], Other, chat::messages),
    route("POST /v3/chat/cancel", &["cancelChat", CHANNEL], Other, chat::cancel),
    route("POST /v3/chat/submit_tool_outputs", &["submitToolChat", CHANNEL], Other, chat::submit),
    route("POST /v1/conversation/create", &["createConversation", CHANNEL], Other, conversation::create),
    route("GET /v1/conversation/retrieve", &["retrieveConversation", CHANNEL], Other, conversation::retrieve),
    route("GET /v1/conversations", &["listConversation"], Other, conversation::list),
    route("PUT /v1/conversations/:conversation_id", &["editConversation"], Other, conversation::rename),
    route("DELETE /v1/conversations/:conversation_id", &["editConversation"], Other, conversation::delete),
    route("POST /v1/conversations/:conversation_id/clear", &["editConversation"], Other, conversation::clear),
    route("POST /v1/conversation/message/create", &["createMessage"], Other, conversation::create_message),
    route("POST /v1/conversation/message/list", &["chat", "listMessage", CHANNEL], Other, conversation::list_messages),
    route("GET /v1/conversation/message/retrieve", &["retrieveMessage"], Other, conversation::retrieve_message),
    route("POST /v1/conversation/message/modify", &["modifyMessage"], Other, conversation::modify_message),
    route("POST /v1/conversation/message/delete", &["deleteMessage"], Other, conversation::delete_message),
    route(FEEDBACK[0], &["feedback"], Other, conversation::feedback),
    route(FEEDBACK[1], &["feedback"], Other, conversation::take_feedback_back),
    route("POST /v1/files/upload", &["uploadFile"], Upload, files::upload),
    route("GET /v1/files/retrieve", &["retrieveFile"], Other, files::retrieve),
    route("POST /v1/workflow/run", &["run"], Workflow, workflow::run),
    route("POST /v1/workflow/stream_run", &["run"], Workflow, workflow::stream),
    route("POST /v1/workflow/stream_resume", &["run"], Workflow, workflow::stream_resume),
    route("POST /v1/workflows/resume", &["run"], Workflow, workflow::resume),
    route("POST /v1/workflows/chat", &["run"], Workflow, workflow::chat),
    route("GET /v1/workflows/:workflow_id/run_histories/:execute_id", &["listRunHistory"], Workflow, workflow::history),
    route("GET /v1/workflows", &["listWorkflow"], Other, workflow::list),
    route("GET /v1/workflows/:workflow_id", &["getMetaData"], Other, workflow::retrieve),
    route("POST /v1/bot/create", &["createBot"], Other, edit::create),
    route("POST /v1/bot/update", &["edit"], Other, edit::update),
    route("POST /v1/bot/publish", &["publish"], Other, edit::publish),
    route("POST /v1/bots/:bot_id/unpublish", &["disconnectBot", "Connector.disconnectBot"], Other, edit::unpublish),
    route("POST /v1/templates/:template_id/duplicate", &["createBot"], Other, edit::duplicate),
    route("GET /v1/variables", &["readVariable"], Other, variables::list),
    route("PUT /v1/variables", &["updateVariable"], Other, variables::set),
    route("GET /v1/bot/get_online_info", &["getMetadata"], Other, bots::online_info),
    route("GET /v1/bots", &["listBot"], Other, bots::list),
    route("GET /v1/bots/:bot_id", &["getMetadata"], Other, bots::retrieve),
    route("GET /v1/space/published_bots_list", &["getPublishedBot"], Other, bots::published),
    route("GET /v1/workspaces", &["listWorkspace"], Other, bots::workspaces),
    route("GET /v1/users/me", &["getUserInfo"], Other, bots::me),
    route("GET /v1/commerce/benefit/benefits/get", &["getBenefit"], Other, bots::benefits),
    route("GET /api/permission/oauth2/authorize", &[], Public, oauth::authorize),
    route("GET /api/permission/oauth2/workspace_id/:workspace_id/authorize", &[], Public, oauth::authorize),
    route("POST /api/permission/oauth2/token", &[], Public, oauth::token),
    route("POST /api/permission/oauth2/account/:account_id/token", &[], Public, oauth::token),
    route("POST /api/permission/oauth2/enterprise_id/:enterprise_id/token", &[], Public, oauth::token),
    route("POST /api/permission/oauth2/device/code", &[], Public, oauth::device_code),
    route("POST /api/permission/oauth2/workspace_id/:workspace_id/device/code", &[], Public, oauth::device_code),
];

/// The endpoint for a request, and what stands in the places of its pattern.
pub(crate) fn find(method: &str, path: &str) -> Option<(&'static Route, Vec<String>)> {
    ROUTES.iter().find_map(|route| {
        let (wanted, pattern) = route.name.split_once(' ')?;
        if wanted != method {
            return None;
        }
        let mut args = Vec::new();
        let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
        loop {
            match (pattern.next(), path.next()) {
                (None, None) => return Some((route, args)),
                (Some(place), Some(text)) if place.starts_with(':') && !text.is_empty() => args.push(decode(text)),
                (Some(place), Some(text)) if place == text => {}
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_finds_its_route_and_what_stands_in_it() {
        let name = |method, path| find(method, path).map(|(route, args)| (route.name, args));
        assert_eq!(name("POST", "/v3/chat"), Some(("POST /v3/chat", vec![])));
        assert_eq!(name("GET", "/v1/bots/a%20b"), Some(("GET /v1/bots/:bot_id", vec!["a b".into()])));
        for (method, path) in
            [("GET", "/v3/chat"), ("POST", "/v3/chat/"), ("GET", "/v1/bots/"), ("GET", "/"), ("PUT", "")]
        {
            assert_eq!(name(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn every_route_is_there_once_and_protected_unless_it_is_oauth() {
        for (at, route) in ROUTES.iter().enumerate() {
            assert_eq!(ROUTES.iter().position(|other| other.name == route.name), Some(at));
            assert_eq!(route.permissions.is_empty(), route.name.contains("/oauth2/"), "{}", route.name);
        }
    }
}
