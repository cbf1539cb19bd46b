//! Where the log goes: standard error, so that standard output is for what a command prints.

use std::io::{self, IsTerminal};

use coze_core::BoxError;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::config::LogFormat;

/// Sends the log to standard error, from `info` on unless `RUST_LOG` says otherwise. Where there is a subscriber already, it
/// stays.
///
/// # Errors
/// When `RUST_LOG` cannot be understood.
pub fn init(format: LogFormat) -> Result<(), BoxError> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let filter = filter.from_env().map_err(|e| format!("RUST_LOG cannot be understood: {e}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Somebody else's subscriber is as good.
    let _ = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}
