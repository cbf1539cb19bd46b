//! The tenant layer against the bare service.

use coze_benches::{bare, compare, criterion};
use coze_core::TenantId;
use coze_tenant::{Registry, TenantLayer};
use criterion::Criterion;
use http::Request;
use tower::Layer;

fn registry(criterion: &mut Criterion) {
    let tenants = ["acme", "globex", "initech"].map(|name| TenantId::new(name).expect("valid"));
    let ours = TenantLayer::new(Registry::new(tenants)).layer(bare());
    let request = || Request::builder().header("x-tenant-id", "globex").body(()).expect("valid");
    compare(criterion, "tenant/registry", ours, bare(), request);
}

criterion::criterion_group! { name = tenant; config = criterion(); targets = registry }
criterion::criterion_main!(tenant);
