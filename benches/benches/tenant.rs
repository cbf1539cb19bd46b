//! The tenant layer against the bare service.

use bytes::Bytes;
use coze_benches::{bare, compare, criterion, in_context};
use coze_core::TenantId;
use coze_tenant::{Registry, TenantLayer};
use criterion::Criterion;
use http::Request;
use http_body_util::Full;
use tower::Layer;

fn registry(c: &mut Criterion) {
    let tenants = ["acme", "globex", "initech"].map(|name| TenantId::new(name).expect("valid"));
    let ours = TenantLayer::new(Registry::new(tenants)).layer(bare::<_, Full<Bytes>>());
    let make = || {
        let request = Request::builder().header("x-tenant-id", "globex").body(Full::<Bytes>::default());
        in_context(request.expect("valid"))
    };
    compare(c, "tenant/registry", ours, bare::<_, Full<Bytes>>(), make);
}

criterion::criterion_group! { name = tenant; config = criterion(); targets = registry }
criterion::criterion_main!(tenant);
