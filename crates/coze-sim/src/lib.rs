#![doc = include_str!("../README.md")]

mod answer;
mod auth;
mod body;
mod bots;
mod call;
mod capped;
mod chat;
mod config;
mod control;
mod conversation;
mod dialog;
mod digest;
mod entity;
mod fault;
mod files;
mod ids;
mod jwt;
mod limit;
mod message;
mod oauth;
mod push;
mod record;
mod reply;
mod route;
mod running;
mod server;
mod sim;
mod state;
mod variables;
pub mod vault;
mod workflow;

pub use config::{
    ACCOUNT, BOT, CLIENT_ID, CLIENT_SECRET, Config, DRAFT_BOT, ErrorShape, Keep, Limits, OAuth, Pace, TALKATIVE_BOT,
    TOKEN, WORKFLOW, WORKSPACE,
};
pub use digest::{fingerprint, sign_callback, sign_webhook};
pub use entity::{App, Bot, Token, Workflow, Workspace};
pub use fault::{Fault, FaultKind, InvalidFault};
pub use push::{Callback, Challenge, Pushed, Tamper, Webhook};
pub use record::{Counts, Recorded, RouteCount};
pub use sim::{Sim, serve};
