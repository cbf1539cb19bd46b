//! The whole stack of the way in, over TCP, around services of hyper, axum and tonic.

mod flood;
mod grpc;
mod http1;
mod stack;
