use axum::body::Body;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    },
};

/// What a person is told. Nothing on a page comes from elsewhere than from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Done,
    /// They do not know the password, or were not asked yet.
    Password,
    /// They did not consent.
    Refused,
    /// Not what was begun in this browser, begun too long ago, or over.
    Stale,
    /// The platform does not take the code.
    Spent,
    /// The platform has something against the app.
    App,
    Unreachable,
    /// Something here.
    Broken,
}

/// A heading and a text, in Chinese and in English.
type Words = [[&'static str; 2]; 2];

impl Page {
    fn words(self) -> (StatusCode, Words) {
        match self {
            Self::Done => (
                StatusCode::OK,
                [
                    ["授权成功", "机器人现在可以代表您的账号回答问题。您可以关闭此页面。"],
                    ["Access granted", "The bot can now answer on behalf of your account. You may close this page."],
                ],
            ),
            Self::Password => (
                StatusCode::UNAUTHORIZED,
                [
                    ["需要密码", "请输入本服务运营者设置的密码，用户名可随意填写。"],
                    [
                        "A password is needed",
                        "It is the one that whoever runs this service has set. Any user name will do.",
                    ],
                ],
            ),
            Self::Refused => (
                StatusCode::FORBIDDEN,
                [
                    ["您拒绝了授权", "没有保存任何内容。如果这不是您的本意，请重新开始。"],
                    ["You did not grant access", "Nothing was stored. If that is not what you meant, start again."],
                ],
            ),
            Self::Stale => (
                StatusCode::BAD_REQUEST,
                [
                    [
                        "链接已失效",
                        "授权链接只能使用一次，并且必须在十分钟内、在开始授权的同一浏览器中完成。请重新开始。",
                    ],
                    [
                        "This link is no longer good",
                        "It is good once, for ten minutes, and only in the browser in which you began. Start again.",
                    ],
                ],
            ),
            Self::Spent => (
                StatusCode::BAD_REQUEST,
                [
                    ["授权码无效", "平台没有接受授权码：它可能已被使用或已过期。请重新开始。"],
                    [
                        "The code is not accepted",
                        "The platform did not take it: it was used before, or came too late. Start again.",
                    ],
                ],
            ),
            Self::App => (
                StatusCode::BAD_GATEWAY,
                [
                    ["平台拒绝了此应用", "请联系本服务的运营者检查应用的设置，然后重新开始。"],
                    [
                        "The platform refused this app",
                        "Ask whoever runs this service to check the app's settings, then start again.",
                    ],
                ],
            ),
            Self::Unreachable => (
                StatusCode::SERVICE_UNAVAILABLE,
                [
                    ["暂时无法连接平台", "没有保存任何内容。请稍等几分钟，然后重新开始。"],
                    ["The platform cannot be reached", "Nothing was stored. Wait a few minutes, then start again."],
                ],
            ),
            Self::Broken => (
                StatusCode::INTERNAL_SERVER_ERROR,
                [
                    ["授权未能保存", "本服务出现故障。请联系本服务的运营者，然后重新开始。"],
                    [
                        "The access could not be stored",
                        "Something is wrong here. Tell whoever runs this service, then start again.",
                    ],
                ],
            ),
        }
    }

    pub(super) fn response(self) -> Response<Body> {
        let (status, [[title_zh, text_zh], [title, text]]) = self.words();
        let again = match self {
            Self::Done => "",
            _ => "<p><a href=\"start\">重新开始 · Start again</a></p>\n",
        };
        let page = format!(
            "<!doctype html>\n<html lang=\"zh-CN\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title_zh} · {title}</title>\n\
             <h1>{title_zh}</h1>\n<p>{text_zh}</p>\n\
             <section lang=\"en\">\n<h1>{title}</h1>\n<p>{text}</p>\n</section>\n{again}</html>\n"
        );
        let mut response = Response::new(Body::from(page));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        guard(headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        if self == Self::Password {
            let challenge = HeaderValue::from_static("Basic realm=\"bot-backend\", charset=\"UTF-8\"");
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The headers of every answer that a browser gets: kept nowhere, taken for what it is, without anything of others, and the
/// address, which has a code in it, told to nobody.
pub(super) fn guard(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
}
