//! The retry layer over an inner service that does as it is told.

mod body;
mod contract;
mod cost;
mod deadline;
mod safety;
mod support;
mod table;
