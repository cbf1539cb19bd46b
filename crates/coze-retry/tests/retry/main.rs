//! The retry layer over an inner service that does as it is told.

mod body;
mod breaker;
mod contract;
mod cost;
mod deadline;
mod grpc;
mod hedge;
mod safety;
mod storm;
mod support;
mod table;
mod timeouts;
