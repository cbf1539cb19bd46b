use bytes::Bytes;
use http::request::Parts;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::{auth::Grant, fault::FaultKind, reply::Refusal};

/// One request as a handler sees it: read whole, authenticated, counted.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
    /// What stands in the places of the route's pattern.
    pub(crate) args: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) grant: Grant,
    /// The fault this request was chosen for, where the handler has a part in it.
    pub(crate) fault: FaultKind,
    pub(crate) now: Instant,
    pub(crate) unix: u64,
    pub(crate) logid: String,
}

impl Call {
    /// A query parameter; an empty one counts as absent, because the Python SDK sends those.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    pub(crate) fn need_query(&self, name: &str) -> Result<&str, Refusal> {
        self.query(name).ok_or_else(|| Refusal::param(format!("{name} is required")))
    }

    /// A numeric query parameter within bounds.
    pub(crate) fn query_number(&self, name: &str, default: usize, min: usize, max: usize) -> Result<usize, Refusal> {
        let Some(text) = self.query(name) else { return Ok(default) };
        match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(Refusal::param(format!("{name} must be a number from {min} to {max}"))),
        }
    }

    /// The body as a JSON object; no body is an empty object.
    pub(crate) fn object(&self) -> Result<Fields, Refusal> {
        if self.body.is_empty() {
            return Ok(Fields(Map::new()));
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(_) => Err(Refusal::param("the request body must be a JSON object")),
            Err(error) => Err(Refusal::param(format!("the request body is not valid JSON: {error}"))),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }
}

/// The fields of a JSON object. `null` counts as absent, because the Python SDK sends it for what was not given.
#[derive(Debug)]
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Fields {
    pub(crate) fn value(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Refusal::param(format!("{name} must be a string"))),
        }
    }

    pub(crate) fn need_text(&self, name: &str) -> Result<&str, Refusal> {
        match self.text(name)? {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(Refusal::param(format!("{name} is required"))),
        }
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool, Refusal> {
        match self.value(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Refusal::param(format!("{name} must be a boolean"))),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<i64>, Refusal> {
        match self.value(name) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => Err(Refusal::param(format!("{name} must be an integer"))),
            },
        }
    }

    /// The fields of an object in a field; none where it is not there.
    pub(crate) fn object(&self, name: &str) -> Result<Self, Refusal> {
        match self.value(name) {
            None => Ok(Self(Map::new())),
            Some(Value::Object(map)) => Ok(Self(map.clone())),
            Some(_) => Err(Refusal::param(format!("{name} must be an object"))),
        }
    }

    pub(crate) fn list(&self, name: &str) -> Result<&[Value], Refusal> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::Array(list)) => Ok(list),
            Some(_) => Err(Refusal::param(format!("{name} must be an array"))),
        }
    }

    /// Key-value pairs within the platform's bounds: at most 16, keys of 1 to 64 and values of 1 to 512 characters, else
    /// 4003.
    pub(crate) fn meta_data(&self) -> Result<Map<String, Value>, Refusal> {
        let map = match self.value("meta_data") {
            None => return Ok(Map::new()),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(Refusal::param("meta_data must be an object")),
        };
        if map.len() > 16 {
            return Err(Refusal::new(4003, "meta_data has more than 16 pairs"));
        }
        for (key, value) in map {
            let Value::String(text) = value else {
                return Err(Refusal::param(format!("meta_data.{key} must be a string")));
            };
            if !(1..=64).contains(&key.chars().count()) || !(1..=512).contains(&text.chars().count()) {
                return Err(Refusal::new(4003, "meta_data has a key or a value that is too short or too long"));
            }
        }
        Ok(map.clone())
    }
}

/// The pairs of a query string.
pub(crate) fn query_pairs(query: Option<&str>) -> Vec<(String, String)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect()
}

/// Undoes percent-encoding (and `+`); what is not valid stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let pair = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match pair.and_then(|pair| hex::decode(pair).ok()) {
            Some(decoded) => {
                out.extend(decoded);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-encodes all but unreserved characters (RFC 3986 §2.3).
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for text in ["", "a b+c", "https://x/y?z=1#f", "服务"] {
            assert_eq!(decode(&encode(text)), text);
        }
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%4"), "%zz%4");
    }

    proptest::proptest! {
        #[test]
        fn any_text_survives_encoding(text in ".*") {
            proptest::prop_assert_eq!(decode(&encode(&text)), text);
        }

        #[test]
        fn any_text_can_be_decoded(text in "[%0-9a-f+&=;\\PC]*") {
            let _ = (decode(&text), query_pairs(Some(&text)));
        }
    }

    #[test]
    fn a_query_is_split_into_pairs() {
        let pairs = query_pairs(Some("a=1&b&&c=x%3Dy"));
        let expected = [("a", "1"), ("b", ""), ("c", "x=y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(pairs, expected);
    }
}
