//! The whole stack of the way in, over TCP, around services of hyper, axum and tonic.

mod grpc;
mod http1;
mod stack;
