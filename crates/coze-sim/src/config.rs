use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use crate::{App, Bot, Token, Workflow, Workspace};

/// The personal access token a default platform accepts.
pub const TOKEN: &str = "pat_sim0000000000000000000000000001";
/// The first bot of a default platform: it repeats what it is told.
pub const BOT: &str = "7300000000000000001";
/// The second bot of a default platform: several answers, and follow-up questions.
pub const TALKATIVE_BOT: &str = "7300000000000000002";
/// A bot of a default platform that is not published: a chat with it is refused with 4015.
pub const DRAFT_BOT: &str = "7300000000000000003";
/// The workflow of a default platform: it gives back its parameter `input`.
pub const WORKFLOW: &str = "7400000000000000001";
/// The workspace of a default platform.
pub const WORKSPACE: &str = "7500000000000000001";
/// The account everything of a default platform belongs to.
pub const ACCOUNT: &str = "2000000000000001";
/// The OAuth app of a default platform (authorization code, PKCE, device).
pub const CLIENT_ID: &str = "10000000000000000000000000000001.app.coze";
/// Its secret.
pub const CLIENT_SECRET: &str = "sim-client-secret-0000000001";

/// What a simulated platform is made of. No field constrains another.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Default 127.0.0.1, port 0 (any free one).
    pub listen: SocketAddr,
    /// The seed of ids, log ids, tokens, answers and chunk boundaries. Default 1. With a fixed [`Config::clock`] the
    /// same requests in the same order get the same bytes.
    pub seed: u64,
    /// The wall clock of every absolute timestamp. Default [`SystemTime::now`].
    pub clock: fn() -> SystemTime,
    /// The bots. Default [`BOT`], [`TALKATIVE_BOT`], [`DRAFT_BOT`].
    pub bots: Vec<Bot>,
    /// The workflows. Default [`WORKFLOW`].
    pub workflows: Vec<Workflow>,
    /// The workspaces. Default [`WORKSPACE`].
    pub workspaces: Vec<Workspace>,
    /// Personal and service access tokens. Default [`TOKEN`].
    pub tokens: Vec<Token>,
    /// OAuth apps. Default [`CLIENT_ID`]; for a JWT app see [`App::with_key`].
    pub apps: Vec<App>,
    /// Lifetimes and shapes of OAuth.
    pub oauth: OAuth,
    /// What one app or token may do.
    pub limits: Limits,
    /// How fast answers come.
    pub pace: Pace,
    /// How much is kept.
    pub keep: Keep,
    /// The header that says whose request it is, recorded with each request. Default `x-tenant-id`.
    pub tenant_header: String,
    /// Are the control endpoints under `/_sim/` served? Default true.
    pub control: bool,
}

impl Default for Config {
    fn default() -> Self {
        let talkative = Bot {
            answers: vec![
                "Let me think about {content}".into(),
                "{content}? There is a lot to say about that".into(),
                "好的，我们来谈谈 {content}".into(),
            ],
            follow_ups: vec!["What else?".into(), "Why is that?".into()],
            ..Bot::new(TALKATIVE_BOT, "Talkative")
        };
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            seed: 1,
            clock: SystemTime::now,
            bots: vec![Bot::new(BOT, "Echo"), talkative, Bot { published: false, ..Bot::new(DRAFT_BOT, "Draft") }],
            workflows: vec![Workflow { id: WORKFLOW.into(), name: "Echo".into(), published: true }],
            workspaces: vec![Workspace::default()],
            tokens: vec![Token::new(TOKEN)],
            apps: vec![App {
                client_id: CLIENT_ID.into(),
                client_secret: Some(CLIENT_SECRET.into()),
                name: "sim".into(),
                ..App::default()
            }],
            oauth: OAuth::default(),
            limits: Limits::default(),
            pace: Pace::default(),
            keep: Keep::default(),
            tenant_header: "x-tenant-id".into(),
            control: true,
        }
    }
}

/// Lifetimes and shapes of OAuth.
#[derive(Clone, Debug)]
pub struct OAuth {
    /// Life of an access token; a JWT request may ask for another (`duration_seconds`). Default 15 minutes, in whole seconds.
    pub token_lifetime: Duration,
    /// Life of a refresh token. Default 30 days.
    pub refresh_lifetime: Duration,
    /// Life of an authorization code. Default 10 minutes.
    pub code_lifetime: Duration,
    /// Life of a device code. Default 300 s.
    pub device_lifetime: Duration,
    /// The least time between two polls with a device code, else `slow_down`, in whole seconds. Default 5 s.
    pub device_interval: Duration,
    /// How error bodies are spelled. Default [`ErrorShape::All`].
    pub errors: ErrorShape,
    /// What `aud` of an assertion may be besides the host the request came to, whose port does not matter. Default none.
    pub audiences: Vec<String>,
}

impl Default for OAuth {
    fn default() -> Self {
        Self {
            token_lifetime: Duration::from_secs(900),
            refresh_lifetime: Duration::from_secs(30 * 86_400),
            code_lifetime: Duration::from_secs(600),
            device_lifetime: Duration::from_secs(300),
            device_interval: Duration::from_secs(5),
            errors: ErrorShape::All,
            audiences: Vec::new(),
        }
    }
}

/// How OAuth errors are spelled: documents and SDKs of the platform disagree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorShape {
    /// Every spelling at once.
    #[default]
    All,
    /// `error` and `error_description`, as the device flow's document says.
    Standard,
    /// `error_code` and `error_message`, as the error tables say and the Python SDK reads.
    Coded,
}

/// What one app or token may do, counted in fixed windows of a second. Defaults are the free plan's.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The plan: `free`, `pro_personal`, `team`, `enterprise`. Asynchronous runs need another than `free`.
    pub level: String,
    /// Chats a second; 0 is no limit. Default 20.
    pub chat_qps: u32,
    /// Calls of the workflow group a second; 0 is no limit. Default 50.
    pub workflow_qps: u32,
    /// Uploads a second; 0 is no limit. Default 10.
    pub upload_qps: u32,
    /// API calls an app or token may make in all, then every one is refused with 4028; 0 is no limit. Default 0 (the free
    /// plan's is 500).
    pub calls: u64,
    /// Is a second chat in a conversation refused (4016) while one is running? Default true.
    pub one_chat_per_conversation: bool,
    /// The HTTP status of a refusal by a limit per second: 200, or 429 as a gateway would. Default 200.
    pub status: u16,
    /// Its code: 4009, 4008 or 4020. Default 4009.
    pub code: i64,
    /// The largest file, in bytes, read into memory. Default 32 MiB (the platform's is 512 MB).
    pub file_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            level: "free".into(),
            chat_qps: 20,
            workflow_qps: 50,
            upload_qps: 10,
            calls: 0,
            one_chat_per_conversation: true,
            status: 200,
            code: 4009,
            file_bytes: 32 << 20,
        }
    }
}

/// How fast answers come, and how streams look.
#[derive(Clone, Debug)]
pub struct Pace {
    /// How many retrieves of a chat (or run) without a stream still say `in_progress`. Default 1.
    pub polls: u32,
    /// After this time it is done however often it was asked about. Default 1 s.
    pub work: Duration,
    /// Time between two events of a stream. Default none.
    pub chunk_delay: Duration,
    /// The most characters in one delta, at least 1. Default 6.
    pub chunk_chars: usize,
    /// Is there a space after the colon of a stream's fields? The platform sends both. Default false.
    pub space: bool,
    /// Do workflow streams begin with a `PING`? Default false.
    pub ping: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            polls: 1,
            work: Duration::from_secs(1),
            chunk_delay: Duration::ZERO,
            chunk_chars: 6,
            space: false,
            ping: false,
        }
    }
}

/// How much is kept; the oldest goes first.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Conversations. Default 10 000.
    pub conversations: usize,
    /// Messages of one conversation. Default 200.
    pub messages: usize,
    /// Chats. Default 10 000.
    pub chats: usize,
    /// Runs of workflows. Default 1000.
    pub runs: usize,
    /// Bots that are made while it runs, besides those of [`Config::bots`]. Default 1000.
    pub bots: usize,
    /// Variables. Default 1000.
    pub variables: usize,
    /// Descriptions of files. Default 1000; contents are not kept.
    pub files: usize,
    /// Tokens, refresh tokens, codes, device codes and spent assertions, of each. Default 10 000.
    pub grants: usize,
    /// Scripted faults; more are refused. Default 1000.
    pub faults: usize,
    /// Recorded requests. Default 1000.
    pub requests: usize,
    /// Bytes of each recorded body. Default 4096.
    pub body_bytes: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            conversations: 10_000,
            messages: 200,
            chats: 10_000,
            runs: 1000,
            bots: 1000,
            variables: 1000,
            files: 1000,
            grants: 10_000,
            faults: 1000,
            requests: 1000,
            body_bytes: 4096,
        }
    }
}
