use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use coze_core::{Error, Kind};
use http::{HeaderMap, HeaderName, header::FORWARDED};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Addresses that are looked at in a request, from the right: more proxies than anybody has one behind the other.
const MAX_HOPS: usize = 32;

/// The proxies whose word is taken for whom they forward.
///
/// Anybody can send the headers of a proxy. So they are read from the right, where the nearest proxy writes, and only as far as
/// proxies that are trusted: the first address that is not one of theirs is the client's. What is further to the left, the client
/// wrote itself.
#[derive(Clone, Debug)]
pub struct Proxies {
    trusted: Vec<(IpAddr, u8)>,
    header: HeaderName,
}

impl Proxies {
    /// Trusts the proxies in these networks, each an address (`10.1.2.3`) or a block of them (`10.0.0.0/8`, `fd00::/8`), and reads
    /// `X-Forwarded-For`. With none of them the client is always the peer.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with the reason `network_invalid` for what is neither.
    pub fn new<'n>(networks: impl IntoIterator<Item = &'n str>) -> Result<Self, Error> {
        let trusted = networks.into_iter().map(|text| {
            network(text).ok_or_else(|| {
                Error::new(Kind::Invalid, "network_invalid")
                    .with_message(format!("{text:?} is not an address or a block of addresses such as 10.0.0.0/8"))
            })
        });
        Ok(Self { trusted: trusted.collect::<Result<_, _>>()?, header: X_FORWARDED_FOR })
    }

    /// Reads `Forwarded` (RFC 7239) instead: where the proxies write that one. Never both, as the other one is then the client's.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self { header: FORWARDED, ..self }
    }

    /// The client of a request that came with these headers from this peer. A hop whose address cannot be read is not passed.
    #[must_use]
    pub fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let lines = headers.get_all(&self.header).iter();
        // The last line, and in it the last element, is the nearest proxy's.
        let hops = lines.rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).take(MAX_HOPS);
        let mut client = peer.to_canonical();
        for hop in hops {
            if !self.is_trusted(client) {
                break;
            }
            let Some(before) = std::str::from_utf8(hop).ok().and_then(|hop| self.address(hop)) else { break };
            client = before.to_canonical();
        }
        client
    }

    /// [`Proxies::client`] as a key of a [`Level`](crate::Level): an IPv6 address counts as its network of 64 bits, of which a
    /// client has at least one to choose addresses from (RFC 6177).
    #[must_use]
    pub fn key(&self, headers: &HeaderMap, peer: IpAddr) -> Cow<'static, str> {
        Cow::Owned(match self.client(headers, peer) {
            IpAddr::V4(client) => client.to_string(),
            IpAddr::V6(client) => {
                let [a, b, c, d, ..] = client.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
            }
        })
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|(network, bits)| contains(*network, *bits, address))
    }

    fn address(&self, hop: &str) -> Option<IpAddr> {
        if self.header != FORWARDED {
            return address(hop.trim());
        }
        let is_for = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"').to_owned())
        };
        address(&hop.split(';').find_map(is_for)?)
    }
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse().ok().map(|with_port: SocketAddr| with_port.ip()))
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (base, bits) = match text.split_once('/') {
        Some((base, bits)) => (base, Some(bits.parse().ok()?)),
        None => (text, None),
    };
    let base: IpAddr = base.parse().ok()?;
    let most = if base.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some((base, bits))
}

fn contains(network: IpAddr, bits: u8, address: IpAddr) -> bool {
    // Both aligned to the left of 128 bits, so that one comparison does for both families.
    let aligned = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    let differ = aligned(network) ^ aligned(address);
    network.is_ipv4() == address.is_ipv4() && u32::from(bits) <= differ.leading_zeros()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn client(proxies: &Proxies, header: &HeaderName, lines: &[&str], peer: &str) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header, HeaderValue::from_str(line).expect("valid"));
        }
        proxies.client(&headers, ip(peer)).to_string()
    }

    #[test]
    fn the_client_is_the_first_from_the_right_that_is_no_trusted_proxy() {
        let proxies = Proxies::new(["10.0.0.0/8", "192.0.2.1", "2001:db8:1::/48"]).expect("valid");
        for (lines, peer, expected) in [
            (&[][..], "203.0.113.9", "203.0.113.9"),
            (&["198.51.100.1"], "203.0.113.9", "203.0.113.9"),
            (&["198.51.100.1"], "10.0.0.1", "198.51.100.1"),
            (&["1.1.1.1, 198.51.100.1, 192.0.2.1"], "10.0.0.1", "198.51.100.1"),
            (&["1.1.1.1", "198.51.100.1", "192.0.2.1, 2001:db8:1::5"], "::ffff:10.0.0.1", "198.51.100.1"),
            (&["198.51.100.1:4711,[2001:db8:1::5]:80"], "10.0.0.1", "198.51.100.1"),
            (&["::ffff:198.51.100.1"], "10.0.0.1", "198.51.100.1"),
            (&["198.51.100.1, unknown, 192.0.2.1"], "10.0.0.1", "192.0.2.1"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.1", "10.0.0.3"),
            (&[""], "10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(client(&proxies, &X_FORWARDED_FOR, lines, peer), expected, "{lines:?} from {peer}");
        }
        let nobody = Proxies::new([]).expect("valid");
        assert_eq!(client(&nobody, &X_FORWARDED_FOR, &["198.51.100.1"], "10.0.0.1"), "10.0.0.1");
    }

    #[test]
    fn the_standard_header_is_read_where_it_is_asked_for_and_only_there() {
        let proxies = Proxies::new(["10.0.0.0/8"]).expect("valid").forwarded();
        // Examples of RFC 7239, section 4 and 6.
        for (lines, expected) in [
            (&["for=192.0.2.43, for=198.51.100.17;by=10.0.0.2;proto=http;host=example.com"][..], "198.51.100.17"),
            (&["For=\"[2001:db8:cafe::17]:4711\""], "2001:db8:cafe::17"),
            (&["for=192.0.2.43", "proto=https; for = 10.0.0.2"], "192.0.2.43"),
            (&["for=192.0.2.43, for=_hidden"], "10.0.0.1"),
            (&["for=192.0.2.43, for=unknown"], "10.0.0.1"),
            (&["for=\", for=192.0.2.43"], "192.0.2.43"),
        ] {
            assert_eq!(client(&proxies, &FORWARDED, lines, "10.0.0.1"), expected, "{lines:?}");
        }
        assert_eq!(client(&proxies, &X_FORWARDED_FOR, &["192.0.2.43"], "10.0.0.1"), "10.0.0.1");
    }

    #[test]
    fn an_address_of_version_6_counts_as_its_network() {
        let proxies = Proxies::new([]).expect("valid");
        let key = |peer| proxies.key(&HeaderMap::new(), ip(peer));
        assert_eq!(key("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(key("2001:db8:1:2:ffff::1"), key("2001:db8:1:2::1"));
        assert_ne!(key("2001:db8:1:3::1"), key("2001:db8:1:2::1"));
        assert_eq!(key("192.0.2.1"), "192.0.2.1");
        assert_eq!(key("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn what_is_no_network_is_named() {
        for text in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/-1", "proxy", "10.0.0.0/8/8"] {
            let error = Proxies::new([text]).expect_err(text);
            assert!((error.kind(), error.reason()) == (Kind::Invalid, "network_invalid"), "{error:?}");
        }
    }

    proptest! {
        /// However a client fills the header, its proxy appends the address it sees.
        #[test]
        fn what_a_client_forges_changes_nothing(
            forged in prop::collection::vec("[ -~]{0,40}|([0-9]{1,3}\\.){3}[0-9]{1,3}(, ?10\\.0\\.0\\.[0-9])*", 0..40),
            is_standard in any::<bool>(),
        ) {
            let proxies = Proxies::new(["10.0.0.0/8"]).expect("valid");
            let (proxies, header) =
                if is_standard { (proxies.forwarded(), FORWARDED) } else { (proxies, X_FORWARDED_FOR) };
            let seen = if is_standard { "for=198.51.100.1" } else { "198.51.100.1" };
            let mut lines: Vec<&str> = forged.iter().map(String::as_str).collect();
            lines.push(seen);
            prop_assert_eq!(client(&proxies, &header, &lines, "10.0.0.1"), "198.51.100.1");
            let joined = lines.join(", ");
            prop_assert_eq!(client(&proxies, &header, &[&joined], "10.0.0.1"), "198.51.100.1");
            prop_assert_eq!(client(&proxies, &header, &lines, "198.51.100.1"), "198.51.100.1");
        }
    }
}
