use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use coze_core::{BoxError, Context, Error, TenantId};
use coze_ratelimit::Degrade;
use http::{HeaderValue, Request, Response, header, request::Parts};
use moka::future::Cache;
use tokio::time::Instant;

use super::page;
use crate::{app::App, webhook::json_response};

/// How long a page may be shown again.
const LIFE: Duration = Duration::from_secs(30);
/// Bytes of pages.
const CAPACITY: u64 = 16 << 20;

/// Who asks, and what for.
type Key = (TenantId, String);

/// The pages that were read lately, for those who ask more often than they may (requirement R4.4): with their age, and for at most
/// 30 seconds. Who is within the limit gets what is stored.
#[derive(Clone)]
pub(super) struct Remembered(Cache<Key, (Instant, Bytes)>);

impl Default for Remembered {
    fn default() -> Self {
        let weight =
            |key: &Key, page: &(Instant, Bytes)| u32::try_from(key.1.len() + page.1.len() + 200).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(CAPACITY).weigher(weight).time_to_live(LIFE).build())
    }
}

impl Remembered {
    /// Answers with a page, and remembers it.
    pub(super) async fn page<B>(self, app: Arc<App>, request: Request<B>) -> Result<Response<Body>, Error> {
        let (mut parts, _) = request.into_parts();
        let page = page(&app, &mut parts).await?;
        if let Some(key) = key(&mut parts) {
            self.0.insert(key, (Instant::now(), page.to_string().into())).await;
        }
        Ok(json_response(&page))
    }
}

fn key(parts: &mut Parts) -> Option<Key> {
    let tenant = Context::of(&mut parts.extensions).tenant.get()?.clone();
    Some((tenant, parts.uri.path_and_query()?.to_string()))
}

impl<B> Degrade<B, Body> for Remembered {
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn instead(&self, request: Request<B>, refusal: Error) -> Result<Self::Future, Error> {
        let (mut parts, _) = request.into_parts();
        let Some(key) = key(&mut parts) else { return Err(refusal) };
        let pages = self.0.clone();
        Ok(Box::pin(async move {
            let (read, page) = pages.get(&key).await.ok_or(refusal)?;
            let mut response = Response::new(Body::from(page));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            // RFC 9111 §5.1.
            headers.insert(header::AGE, HeaderValue::from(read.elapsed().as_secs()));
            Ok(response)
        }))
    }
}
