use aws_lc_rs::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest},
    hmac,
};

/// What stands for a token where the token must not be shown: the first 16 hexadecimal digits of its SHA-256.
#[must_use]
pub fn fingerprint(token: &str) -> String {
    sha256(token.as_bytes())[..16].to_owned()
}

/// The `X-Signature` of a webhook: HMAC-SHA256 over the raw body with the bot's token as the key, in hexadecimal.
#[must_use]
pub fn sign_webhook(bot_token: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, bot_token.as_bytes());
    hex::encode(hmac::sign(&key, body))
}

/// The `X-Coze-Signature` of a callback: SHA-1 over timestamp, nonce, token and raw body, in hexadecimal
/// (coze-platform.md §5.1; not an HMAC, whatever the platform's prose says).
#[must_use]
pub fn sign_callback(timestamp: &str, nonce: &str, verify_token: &str, body: &[u8]) -> String {
    let text = [timestamp.as_bytes(), nonce.as_bytes(), verify_token.as_bytes(), body].concat();
    hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text))
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of coze-platform.md §5.1.
    #[test]
    fn a_callback_is_signed_as_the_platform_does() {
        let body = br#"{"header":{"event_type":"bot.published","event_id":"12345abc"},"event":{}}"#;
        let signature = sign_callback("1613427443000", "n0nce", "verify_tok", body);
        assert_eq!(signature, "a1414c14d8f2852e591839f2a8f01eafddf0c68c");
    }

    /// RFC 4231, test case 2.
    #[test]
    fn a_webhook_is_signed_with_hmac_sha256() {
        let signature = sign_webhook("Jefe", b"what do ya want for nothing?");
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn a_fingerprint_does_not_show_the_token() {
        assert_eq!(fingerprint("abc"), "ba7816bf8f01cfea");
    }
}
