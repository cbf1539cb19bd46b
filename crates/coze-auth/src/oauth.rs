//! The platform's OAuth flows, as a client (coze-platform.md §1).

mod answer;
mod app;
mod device;
mod endpoint;
mod pkce;
mod refresh;
mod service_account;
#[cfg(feature = "redis")]
mod shared;
mod store;

pub use app::{Granted, OAuthApp};
pub use device::Device;
pub use endpoint::Endpoint;
pub use pkce::Pkce;
pub use refresh::Refresh;
pub use service_account::ServiceAccount;
#[cfg(feature = "redis")]
pub use shared::RedisStore;
pub use store::{FileStore, MemoryStore, RefreshToken, TokenStore};

/// Random bytes from the operating system, as text for a URL.
fn random<const N: usize>() -> Result<String, coze_core::Error> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|error| {
        coze_core::Error::new(coze_core::Kind::Internal, "no_randomness")
            .with_message("the system gives no random bytes")
            .with_source(error)
    })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
