//! The one table (R6.1), as data: kinds, platform codes, HTTP statuses, OAuth errors.

use coze_core::{Error, Kind, Retry};
use http::StatusCode;
use tracing::Level;

/// One kind of failure in everybody's terms: a row of the table.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Mapping {
    /// Our kind.
    pub kind: Kind,
    /// The HTTP status of a response (coze-platform.md §3, end).
    pub status: StatusCode,
    /// The gRPC status code, 1 to 16.
    pub grpc: i32,
    /// The platform's code: its own where it gave one above 0, else the code that says the same best. Always above 0, as the
    /// platform's SDKs take anything else for success.
    pub code: i64,
    /// How loud the log is: error where someone must act.
    pub level: Level,
    /// What to tell people, in English.
    pub en: &'static str,
    /// The same in Chinese.
    pub zh: &'static str,
    pub(crate) wait: Wait,
}

/// When another try is worth it, where the error does not say (coze-platform.md §3, end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Unknown,
    Seconds(u64),
    NextMinute,
    /// The platform counts by days, and its days end at midnight in Beijing.
    NextDay,
}

impl Mapping {
    /// Every kind, once.
    pub const ALL: &[Self] = KINDS;

    /// The row for `error`, with the platform's own code where it gave one.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        let row = KINDS.iter().find(|row| row.kind == error.kind()).unwrap_or(&INTERNAL);
        let given = error.platform().map(|platform| platform.code).filter(|code| *code > 0);
        Self { code: given.unwrap_or(row.code), ..*row }
    }
}

const BUSY: [&str; 2] = ["the service is busy, please try again later", "服务繁忙,请稍后重试"];

#[rustfmt::skip]
const KINDS: &[Mapping] = &[
    //   our kind                HTTP grpc code  level         wait              message for people
    kind(Kind::Invalid,          400,  3, 4000, Level::DEBUG, Wait::Unknown,    ["the request is not valid", "请求参数有误"]),
    kind(Kind::Unauthenticated,  401, 16, 4100, Level::INFO,  Wait::Unknown,    ["authentication failed", "身份验证失败"]),
    kind(Kind::PermissionDenied, 403,  7, 4101, Level::INFO,  Wait::Unknown,    ["permission denied", "没有权限"]),
    kind(Kind::NotFound,         404,  5, 4200, Level::DEBUG, Wait::Unknown,    ["there is no such thing", "资源不存在"]),
    kind(Kind::Conflict,         409, 10, 4016, Level::DEBUG, Wait::Unknown,    ["it collides with another request", "请求与其他操作冲突"]),
    kind(Kind::TooLarge,         413,  8, 4302, Level::DEBUG, Wait::Unknown,    ["the request is too large", "请求内容过大"]),
    kind(Kind::Content,          422,  3, 4014, Level::DEBUG, Wait::Unknown,    ["the content is not accepted", "内容不符合要求,请修改后重试"]),
    kind(Kind::Billing,          402,  9, 4027, Level::ERROR, Wait::Unknown,    ["the account is out of money", "账户余额不足"]),
    kind(Kind::RateLimited,      429,  8, 4020, Level::INFO,  Wait::NextMinute, BUSY),
    kind(Kind::Quota,            429,  8, 4008, Level::WARN,  Wait::NextDay,    ["the quota is used up", "额度已用完"]),
    kind(Kind::Overloaded,       429,  8, 4009, Level::WARN,  Wait::Seconds(3), BUSY),
    kind(Kind::Precondition,     400,  9, 4015, Level::WARN,  Wait::Unknown,    ["something must be set up first", "尚未完成相应配置"]),
    // Not 4013, which the platform's SDK for JavaScript takes for a rate limit whatever the status (coze-platform.md §3).
    kind(Kind::Upstream,         502, 14,  502, Level::WARN,  Wait::Unknown,    ["a service this one needs failed", "依赖的服务出错"]),
    kind(Kind::Unavailable,      503, 14, 5000, Level::WARN,  Wait::Unknown,    ["the service is not available now", "服务暂不可用,请稍后重试"]),
    kind(Kind::Timeout,          504,  4, 6023, Level::WARN,  Wait::Unknown,    ["there was no answer in time", "请求超时"]),
    kind(Kind::Cancelled,        499,  1, 5000, Level::DEBUG, Wait::Unknown,    ["the request was cancelled", "请求已取消"]),
    INTERNAL,
];

const INTERNAL: Mapping =
    kind(Kind::Internal, 500, 13, 5000, Level::ERROR, Wait::Unknown, ["internal error", "服务内部错误"]);

const fn kind(
    kind: Kind,
    status: u16,
    grpc: i32,
    code: i64,
    level: Level,
    wait: Wait,
    [en, zh]: [&'static str; 2],
) -> Mapping {
    let Ok(status) = StatusCode::from_u16(status) else { panic!("the table holds HTTP statuses") };
    Mapping { kind, status, grpc, code, level, en, zh, wait }
}

/// Codes of the platform that mean the same to a caller.
pub(crate) struct Codes {
    codes: &'static [i64],
    pub(crate) kind: Kind,
    pub(crate) reason: &'static str,
    pub(crate) retry: Retry,
}

/// What the table knows of a platform code.
pub(crate) fn platform(code: i64) -> Option<&'static Codes> {
    CODES.iter().find(|row| row.codes.contains(&code))
}

const fn codes(codes: &'static [i64], kind: Kind, reason: &'static str) -> Codes {
    Codes { codes, kind, reason, retry: kind.retry() }
}

/// coze-platform.md §3; the last row is what coze-studio flags as its own fault (`AffectStability`).
static CODES: &[Codes] = &[
    codes(&[4000], Kind::Invalid, "bad_parameter"),
    codes(&[4001], Kind::NotFound, "chat_not_found"),
    codes(&[4002], Kind::NotFound, "conversation_not_found"),
    codes(&[4003], Kind::Invalid, "too_much_meta_data"),
    codes(&[4004], Kind::Invalid, "too_many_messages"),
    codes(&[4005], Kind::Invalid, "bad_message"),
    codes(&[4006], Kind::NotFound, "bot_not_found"),
    codes(&[4007], Kind::Invalid, "auto_save_history_required"),
    codes(&[4008], Kind::Quota, "daily_quota"),
    codes(&[4009], Kind::Overloaded, "system_limit"),
    codes(&[4010, 702112107], Kind::Invalid, "too_many_tokens"),
    codes(&[4011, 702082020, 702095072, 717995023, 717995024], Kind::Billing, "tokens_used_up"),
    codes(&[4012], Kind::Precondition, "model_withdrawn"),
    codes(&[4013], Kind::Upstream, "model_error"),
    codes(&[4014], Kind::Content, "question_refused"),
    codes(&[4015], Kind::Precondition, "bot_not_published"),
    codes(&[4016], Kind::Conflict, "chat_running"),
    codes(&[4019, 4022, 4027], Kind::Billing, "account_overdue"),
    codes(&[4020], Kind::RateLimited, "rpm_limit"),
    codes(&[4021], Kind::Precondition, "workflow_not_configured"),
    codes(&[4028], Kind::Quota, "credits_used_up"),
    codes(&[4029], Kind::Precondition, "room_closed"),
    codes(&[4100, 700012006], Kind::Unauthenticated, "token_invalid"),
    codes(&[4101], Kind::PermissionDenied, "token_or_permission"),
    // The request was held back, so it did not run; whether to wait and try once more is for who retries to say.
    Codes { codes: &[4102], kind: Kind::PermissionDenied, reason: "risk_control", retry: Retry::Safe },
    codes(&[4104], Kind::Conflict, "chat_not_cancelable"),
    codes(&[4105], Kind::Content, "sensitive_content"),
    codes(&[4200], Kind::NotFound, "resource_not_found"),
    codes(&[4201], Kind::Conflict, "member_exists"),
    codes(&[4300], Kind::Invalid, "file_empty"),
    codes(&[4301], Kind::Invalid, "too_many_files"),
    codes(&[4302], Kind::TooLarge, "file_too_large"),
    codes(&[4303], Kind::Invalid, "file_type_unsupported"),
    codes(&[4304], Kind::Invalid, "file_invalid"),
    codes(&[4314], Kind::NotFound, "execution_not_found"),
    codes(&[4315], Kind::Conflict, "execution_finished"),
    codes(&[5000], Kind::Unavailable, "server_error"),
    codes(&[6003], Kind::Billing, "paid_plan_required"),
    codes(&[6023, 720702085], Kind::Timeout, "workflow_timeout"),
    codes(&[6031], Kind::Precondition, "workflow_not_published"),
    codes(&[6039], Kind::Invalid, "interrupt_not_supported"),
    codes(&[700012014], Kind::PermissionDenied, "risk_control"),
    codes(&[700012015], Kind::PermissionDenied, "country_restricted"),
    // Seen as a sample only: what it means depends on where it stands.
    Codes { codes: &[701231], kind: Kind::Upstream, reason: "platform_error", retry: Retry::Never },
    codes(&[702093018], Kind::RateLimited, "plugin_qps_limit"),
    codes(&[702112101], Kind::Upstream, "model_timeout"),
    codes(&[702112102], Kind::Unauthenticated, "model_auth"),
    codes(&[702112103], Kind::RateLimited, "model_rate_limit"),
    codes(&[702112104], Kind::Invalid, "model_bad_request"),
    codes(&[702112105], Kind::Invalid, "model_bad_function_input"),
    codes(&[702112106], Kind::Unavailable, "model_server_error"),
    codes(&[702112108], Kind::Invalid, "model_bad_role"),
    codes(&[702112110], Kind::Invalid, "model_bad_template"),
    codes(&[702112111], Kind::Invalid, "model_access_key_invalid"),
    codes(&[702112112], Kind::Invalid, "plugin_needs_authority"),
    codes(&[702112113], Kind::Overloaded, "shutting_down"),
    codes(&[702112114], Kind::Invalid, "model_bad_workflow"),
    codes(&[702112115], Kind::Invalid, "too_many_iterations"),
    codes(&[702112116], Kind::Billing, "model_unpaid"),
    codes(&[702112117, 702232007], Kind::Invalid, "text_too_long"),
    codes(&[702242003], Kind::Precondition, "bot_unbound"),
    codes(&[708882003], Kind::Unauthenticated, "knowledge_auth"),
    codes(&[720711011], Kind::Precondition, "plugin_offline"),
    codes(&[777074011], Kind::Quota, "member_limit"),
    codes(STUDIO_FAULTS, Kind::Unavailable, "studio_fault"),
];

#[rustfmt::skip]
const STUDIO_FAULTS: &[i64] = &[
    100000004, 100000005, 100000006, 100000007, 100000008, 100000009, 100000010, 100000012,
    103000003, 103100001, 103100003, 103100004, 103100005, 103200002,
    106000002, 106000004, 106000005, 106000006, 106000007, 106000010, 106000012, 106000014, 106000015,
    110000002, 110000003, 110000004, 110000006, 110000007,
    720700801, 720700803, 720700808, 777777767,
];

/// What an HTTP status says where it says all: answers of gateways, routers and other layers.
pub(crate) fn status(status: StatusCode) -> (Kind, &'static str) {
    let found = STATUSES.iter().find(|(known, ..)| *known == status.as_u16());
    match found {
        Some(&(_, kind, reason)) => (kind, reason),
        None if status.is_client_error() => (Kind::Invalid, "http_error"),
        None => (Kind::Upstream, "http_error"),
    }
}

static STATUSES: &[(u16, Kind, &str)] = &[
    (400, Kind::Invalid, "bad_request"),
    (401, Kind::Unauthenticated, "unauthorized"),
    (402, Kind::Billing, "payment_required"),
    (403, Kind::PermissionDenied, "forbidden"),
    (404, Kind::NotFound, "not_found"),
    (405, Kind::Invalid, "method_not_allowed"),
    (408, Kind::Timeout, "request_timeout"),
    (409, Kind::Conflict, "conflict"),
    (410, Kind::NotFound, "gone"),
    (412, Kind::Conflict, "precondition_failed"),
    (413, Kind::TooLarge, "payload_too_large"),
    (414, Kind::TooLarge, "uri_too_long"),
    (415, Kind::Invalid, "unsupported_media_type"),
    (422, Kind::Invalid, "unprocessable"),
    (423, Kind::Conflict, "locked"),
    (425, Kind::Unavailable, "too_early"),
    (429, Kind::RateLimited, "too_many_requests"),
    (431, Kind::TooLarge, "header_fields_too_large"),
    (499, Kind::Cancelled, "client_closed_request"),
    (500, Kind::Unavailable, "internal_server_error"),
    (502, Kind::Upstream, "bad_gateway"),
    (503, Kind::Unavailable, "service_unavailable"),
    (504, Kind::Timeout, "gateway_timeout"),
];

/// What an OAuth endpoint means by its error (coze-platform.md §1.8, RFC 6749 §5.2, RFC 8628 §3.5). None is sent again as it
/// is: an assertion is used once, and polling has an interval of its own.
pub(crate) fn oauth(error: &str) -> Option<(Kind, &'static str)> {
    OAUTH.iter().find(|(known, _)| *known == error).map(|&(reason, kind)| (kind, reason))
}

static OAUTH: &[(&str, Kind)] = &[
    ("invalid_request", Kind::Invalid),
    ("invalid_scope", Kind::Invalid),
    ("unsupported_grant_type", Kind::Invalid),
    ("invalid_client", Kind::Unauthenticated),
    ("invalid_grant", Kind::Unauthenticated),
    ("expired_token", Kind::Unauthenticated),
    ("unauthorized_client", Kind::PermissionDenied),
    ("access_deny", Kind::PermissionDenied),
    ("access_denied", Kind::PermissionDenied),
    ("authorization_pending", Kind::Precondition),
    ("slow_down", Kind::RateLimited),
    ("internal_error", Kind::Unavailable),
];
