use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The text is not an id: empty, longer than 128 bytes, or with a character the id does not allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidId {
    what: &'static str,
    allowed: &'static str,
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be 1 to 128 bytes of {}", self.what, self.allowed)
    }
}

impl std::error::Error for InvalidId {}

/// Safe in a header, a metric label and a log line.
const GRAPHIC: (&str, fn(char) -> bool) = ("visible ASCII", |c| c.is_ascii_graphic());
/// The platform lets a caller choose these, so people's scripts are allowed.
const PRINTABLE: (&str, fn(char) -> bool) = ("text without control characters", |c| !c.is_control());

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $what:literal, $allowed:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// Cloning shares the text and allocates nothing.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the text and takes a copy of it.
            ///
            /// # Errors
            /// [`InvalidId`] unless it is 1 to 128 bytes of the characters this id allows.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                let (allowed, is_allowed) = $allowed;
                if (1..=128).contains(&text.len()) && text.chars().all(is_allowed) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { what: $what, allowed })
                }
            }

            /// The text of the id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &self.0)
            }
        }
    )*};
}

ids! {
    /// One request, from its arrival to the end of its answer: 1 to 128 bytes of visible ASCII.
    RequestId, "request id", GRAPHIC;
    /// Whose request it is: 1 to 128 bytes of visible ASCII.
    TenantId, "tenant id", GRAPHIC;
    /// A bot on the platform: 1 to 128 bytes of visible ASCII.
    BotId, "bot id", GRAPHIC;
    /// A person who talks to a bot: 1 to 128 bytes without control characters.
    UserId, "user id", PRINTABLE;
    /// A conversation between a person and a bot: 1 to 128 bytes without control characters.
    ConversationId, "conversation id", PRINTABLE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_1_to_128_bytes() {
        assert!(TenantId::new("").is_err());
        assert!(TenantId::new(&"t".repeat(128)).is_ok());
        assert!(TenantId::new(&"t".repeat(129)).is_err());
    }

    #[test]
    fn an_id_that_travels_in_headers_is_visible_ascii() {
        for bad in ["a b", "a\n", "租户", "a\u{7f}"] {
            assert!(TenantId::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            BotId::new("b b").expect_err("a space").to_string(),
            "bot id must be 1 to 128 bytes of visible ASCII"
        );
    }

    #[test]
    fn a_user_may_have_a_name_in_any_script() {
        assert_eq!(UserId::new("张三").expect("valid").as_str(), "张三");
        assert!(UserId::new("a\r\nb").is_err());
    }

    #[test]
    fn an_id_is_found_in_a_map_by_its_text() {
        let map = std::collections::HashMap::from([(BotId::new("b1").expect("valid"), 1)]);
        assert_eq!(map.get("b1"), Some(&1));
    }
}
