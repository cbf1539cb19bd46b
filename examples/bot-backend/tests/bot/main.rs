//! The bot over TCP, against the simulated platform.

mod answers;
mod api;
mod callbacks;
mod config;
mod credentials;
mod demo;
mod keeping;
mod keys;
mod later;
mod lifecycle;
mod oauth;
mod pace;
mod plugin;
mod refusals;
mod rotation;
mod servers;
mod support;
mod vault;
