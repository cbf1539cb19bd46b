#![doc = include_str!("../README.md")]

mod future;
mod layer;
mod policy;
mod propagate;
mod registry;
mod service;

pub use future::ResponseFuture;
pub use layer::TenantLayer;
pub use policy::Policy;
pub use propagate::Propagate;
pub use registry::Registry;
pub use service::Tenant;

use http::HeaderName;

/// The header that carries a tenant, both ways, unless the policy is told another.
pub const TENANT_HEADER: HeaderName = HeaderName::from_static("x-tenant-id");
