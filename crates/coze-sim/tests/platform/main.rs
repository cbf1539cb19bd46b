//! The simulated platform over TCP.

mod bots;
mod chat;
mod control;
mod fault;
mod hostile;
mod jwt;
mod oauth;
mod push;
mod resources;
mod seed;
mod support;
mod workflow;
