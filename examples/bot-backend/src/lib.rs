#![doc = include_str!("../README.md")]

pub mod cli;
pub mod config;
pub mod demo;
pub mod logs;
pub mod message;
pub mod store;

mod answering;
mod api;
mod app;
mod backend;
mod callback;
mod idle;
mod later;
mod limits;
mod metrics;
mod oauth;
mod pace;
mod platform;
mod plugin;
mod ready;
mod replays;
mod secrets;
mod server;
mod service_account;
mod sessions;
mod sse;
mod stack;
mod transport;
mod webhook;

pub use backend::Backend;
