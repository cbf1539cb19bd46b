use std::{borrow::Cow, io::Write};

use coze_core::{RequestId, redact};
use http::{HeaderMap, HeaderValue};

use crate::REQUEST_ID_HEADER;

/// The caller's id: a valid one, given once. One that looks like a credential is none, because ids are logged.
pub(crate) fn given(headers: &HeaderMap) -> Option<RequestId> {
    let mut values = headers.get_all(REQUEST_ID_HEADER).iter();
    let id = RequestId::new(values.next()?.to_str().ok()?).ok()?;
    let is_only = values.next().is_none();
    (is_only && matches!(redact(id.as_str()), Cow::Borrowed(_))).then_some(id)
}

/// The id made of these bits: 32 lower-case hex digits.
pub(crate) fn generate(random: fn() -> u128) -> RequestId {
    let mut digits = [0; 32];
    write!(&mut digits[..], "{:032x}", random()).expect("128 bits are 32 hex digits");
    let digits = str::from_utf8(&digits).expect("hex digits are ASCII");
    RequestId::new(digits).expect("hex digits are visible ASCII")
}

/// An id tells requests apart and protects nothing, so a fast source will do.
pub(crate) fn random() -> u128 {
    fastrand::u128(..)
}

/// Sets the header, in place of all its values.
pub(crate) fn put(headers: &mut HeaderMap, id: &RequestId) {
    let value = HeaderValue::from_str(id.as_str()).expect("a request id is visible ASCII");
    headers.insert(REQUEST_ID_HEADER, value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values.iter().map(|v| (REQUEST_ID_HEADER, HeaderValue::from_bytes(v).expect("valid"))).collect()
    }

    #[test]
    fn one_valid_id_is_taken() {
        assert_eq!(given(&headers(&[b"req-1"])).expect("valid").as_str(), "req-1");
        assert!(given(&headers(&[&[b'a'; 128]])).is_some());
    }

    #[test]
    fn no_other_id_is_taken() {
        let bad: [&[&[u8]]; 8] = [
            &[],
            &[b""],
            &[&[b'a'; 129]],
            &[b"a b"],
            &["张三".as_bytes()],
            &[b"\xff"],
            &[b"req-1", b"req-1"],
            &[b"pat_0123456789abcdef"],
        ];
        for values in bad {
            assert_eq!(given(&headers(values)), None, "{values:?}");
        }
    }

    #[test]
    fn small_numbers_keep_their_zeros() {
        assert_eq!(generate(|| 0xab).as_str(), format!("{}ab", "0".repeat(30)));
        assert_eq!(generate(|| u128::MAX).as_str(), "f".repeat(32));
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_was_sent(value in "[ -~]{0,140}") {
            match given(&headers(&[value.as_bytes()])) {
                Some(id) => prop_assert_eq!(id.as_str(), value),
                None => prop_assert!(RequestId::new(&value).is_err() || redact(&value) != value),
            }
        }
    }
}
