//! Protected resource metadata (RFC 9728).

use coze_auth::ResourceMetadata;
use coze_core::{Error, Kind};
use proptest::prelude::*;
use serde_json::{Value, json};

fn document(metadata: &ResourceMetadata) -> Value {
    serde_json::from_slice(&metadata.json()).expect("JSON")
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.expect_err("refused");
    assert_eq!((error.kind(), error.reason()), (Kind::Invalid, "metadata_invalid"));
}

#[test]
fn the_document_says_what_was_given_and_nothing_that_is_empty() {
    let resource = "https://bot.example/v1";
    let bare = ResourceMetadata::new(resource).expect("valid");
    assert_eq!(document(&bare), json!({ "resource": resource, "bearer_methods_supported": ["header"] }));
    let emptied = bare.clone().scopes(["a"]).expect("valid").scopes([]).expect("valid");
    let emptied = emptied.authorization_servers([]).expect("valid");
    assert_eq!(document(&emptied), document(&bare), "RFC 9728 §3.2");

    let full = bare
        .authorization_servers(["https://a.example", "https://b.example/tenant/1"])
        .and_then(|metadata| metadata.scopes(["bot:read", "bot:write"]))
        .and_then(|metadata| metadata.jwks("https://bot.example/jwks.json"))
        .and_then(|metadata| metadata.documentation("http://bot.example/docs?lang=zh"))
        .and_then(|metadata| metadata.policy("https://bot.example/policy"))
        .and_then(|metadata| metadata.terms("https://bot.example/terms"))
        .expect("valid")
        .name("机器人");
    let expected = json!({
        "resource": resource,
        "authorization_servers": ["https://a.example", "https://b.example/tenant/1"],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["bot:read", "bot:write"],
        "jwks_uri": "https://bot.example/jwks.json",
        "resource_name": "机器人",
        "resource_documentation": "http://bot.example/docs?lang=zh",
        "resource_policy_uri": "https://bot.example/policy",
        "resource_tos_uri": "https://bot.example/terms",
    });
    assert_eq!(document(&full), expected);
}

#[test]
fn the_well_known_path_stands_between_host_and_path() {
    // RFC 9728 §3.1
    for (resource, path, query) in [
        ("https://resource.example.com", "", ""),
        ("https://resource.example.com/", "", ""),
        ("https://resource.example.com/resource1", "/resource1", ""),
        ("https://resource.example.com/resource1/", "/resource1/", ""),
        ("https://resource.example.com:8443/a/b", "/a/b", ""),
        ("https://resource.example.com/?k=v", "", "?k=v"),
        ("https://resource.example.com?k=v", "", "?k=v"),
        ("https://resource.example.com/a?k=v/w", "/a", "?k=v/w"),
        ("https://[::1]:1/a", "/a", ""),
        ("HTTPS://Resource.Example.com/A", "/A", ""),
    ] {
        let metadata = ResourceMetadata::new(resource).expect(resource);
        let well_known = format!("/.well-known/oauth-protected-resource{path}");
        assert_eq!(metadata.path(), well_known, "{resource}");
        let host = resource.find('/').and_then(|at| Some(at + 2 + resource[at + 2..].find(['/', '?'])?));
        let origin = &resource[..host.unwrap_or(resource.len())];
        assert_eq!(metadata.url(), format!("{origin}{well_known}{query}"), "{resource}");
        assert_eq!(document(&metadata)["resource"], resource, "as it was given, letter by letter");
    }
}

#[test]
fn what_is_no_identifier_is_refused() {
    for resource in [
        "",
        "resource",
        "/resource",
        "resource.example.com",
        "http://resource.example.com",
        "urn:example:resource",
        "https://",
        "https:///a",
        "https://:443/a",
        "https://resource.example.com/#",
        "https://resource.example.com/a#b",
        "https://user:secret@resource.example.com/",
        "https://resource.example.com/a b",
        "https://resource.example.com/a\"b",
        "https://resource.example.com/a\\b",
        "https://resource.example.com/{a}",
        "https://resource.example.com/资源",
        "https://resource.example.com/\n",
    ] {
        refused(ResourceMetadata::new(resource));
        refused(
            ResourceMetadata::new("https://a.example")
                .expect("valid")
                .authorization_servers(["https://a.example", resource]),
        );
        refused(ResourceMetadata::new("https://a.example").expect("valid").jwks(resource));
    }
    let metadata = || ResourceMetadata::new("https://a.example").expect("valid");
    refused(metadata().authorization_servers(["https://a.example/?tenant=1"]));
    refused(metadata().documentation("ftp://a.example/"));
    refused(metadata().policy("a"));
    refused(metadata().terms("https://a.example/#b"));
    for scope in ["", "a b", "a\"", "a\\", "读", "a\n"] {
        refused(metadata().scopes(["ok", scope]));
    }
    let told = ResourceMetadata::new("https://user:secret@a.example/").expect_err("refused");
    assert!(!format!("{told:?}").contains("secret"));
}

proptest! {
    #[test]
    fn whatever_is_taken_is_an_identifier_that_can_be_found(text in "(https://)?[a-z/?#.:@ {}]{0,12}", any: String) {
        for resource in [text, format!("https://a{any}"), any] {
            if let Ok(metadata) = ResourceMetadata::new(&resource) {
                prop_assert!(resource.starts_with("https://") && !resource.contains('#'));
                let url: http::Uri = metadata.url().parse().expect("a URL");
                prop_assert_eq!(url.path(), metadata.path());
                let resource: http::Uri = resource.parse().expect("a URL");
                prop_assert_eq!(url.authority(), resource.authority());
            }
        }
    }
}
