//! The configuration file: what it may say, and what is said about what it may not.

use std::{path::Path, time::Duration};

use bot_backend::config::{Config, LogFormat};

const OAUTH: &str =
    "client_id = \"c\"\npublic_url = \"https://b\"\npassword = \"0123456789abcdef\"\ntoken_file = \"f\"\n";

const BOT: &str = "[[bots]]\nid = \"b1\"\ntenant = \"t1\"\nwebhook_keys = \"k\"\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("bot.toml")).map_err(|e| e.to_string())
}

/// What is wrong with this text in front of a good bot.
fn wrong(text: &str) -> String {
    parse(&format!("{text}\n{BOT}")).expect_err("wrong")
}

#[test]
fn the_example_holds_every_default() {
    let example = include_str!("../../bot.toml");
    // Secrets of the environment are given another way, as tests share theirs.
    let example = example
        .replace("{ env = \"BOT_PLATFORM_TOKEN\" }", "\"pat_1\"")
        .replace("{ env = \"ACME_WEBHOOK_KEY\" }", "\"k\"");
    let mut config = parse(&example).expect("the example is good");
    assert_eq!(config.bots[0].id.as_str(), "7300000000000000001");
    assert_eq!(config.platform.token.take().expect("given").expose(), "pat_1");
    let defaults = Config { bots: config.bots.clone(), ..Config::default() };
    assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
}

/// The example with what is commented out in it, except for the table `without`.
fn whole(without: &str) -> Config {
    let (before, table) = include_str!("../../bot.toml").split_once(&format!("# [{without}]\n")).expect("there");
    let after = table.split_once("\n\n").expect("an empty line after the table").1;
    let example: String = format!("{before}\n{after}")
        .lines()
        .filter(|line| !line.starts_with("token"))
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.starts_with('[') || key.contains(" = ") && !key.starts_with("A secret") => {
                format!("{key}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    let example = example
        .replace("{ env = \"ACME_WEBHOOK_KEY\" }", "[\"k1\", \"k2\"]")
        .replace("{ env = \"ACME_VERIFY_TOKEN\" }", "\"v\"")
        .replace("{ env = \"ACME_PLUGIN_KEY\" }", "\"0123456789abcdef0123456789abcdef\"")
        .replace("{ env = \"BOT_OAUTH_SECRET\" }", "\"s\"")
        .replace("{ file = \"/run/secrets/coze-key.pem\" }", "\"key\"")
        .replace("{ file = \"/run/secrets/coze-key-id\" }", "\"id\"")
        .replace("{ env = \"BOT_OAUTH_PASSWORD\" }", "\"0123456789abcdef\"");
    parse(&example).expect("good")
}

#[test]
fn the_commented_keys_of_the_example_are_good_too() {
    let oauth = whole("platform.service_account").platform.oauth.expect("there");
    assert_eq!(oauth.public_url.host(), "bot.example.com");
    let config = whole("platform.oauth");
    assert!(config.api.resource.is_some() && config.api.issuers[0].tenants.len() == 1);
    assert!(config.platform.service_account.is_some() && config.bots[0].concurrency.is_some());
    assert_eq!((config.bots[0].webhook_keys.len(), config.bots[0].verify_tokens.len()), (2, 1));
    assert_eq!(config.plugin_keys[0].name, "history");
    assert_eq!((config.retry.hedge, config.retry.rows.len()), (Some(Duration::from_secs(2)), 1));
}

#[test]
fn a_change_to_the_decision_table_names_rows_that_are_there() {
    let message = wrong("[[retry.rows]]\nname = \"timeout\"\n\n[[retry.rows]]\ntries = 2\nname = \"busy\"");
    assert!(
        message.starts_with("bot.toml:6: retry.rows[1].name: there is no row `busy`, expected one of"),
        "{message}"
    );
}

#[test]
fn a_vault_has_one_of_three_logins() {
    let vault = "[vault]\naddress = \"https://v:8200\"\n";
    let bot = BOT.replace("\"k\"", "{ vault = \"bot/keys\", field = \"webhook\", mount = \"kv\" }");
    for login in [
        "token=\"t\"",
        "kubernetes={role=\"bot\"}",
        "app_role={role_id=\"bot\",secret_id=\"s\",wrapped=true,mount=\"approle\"}",
    ] {
        let config = parse(&format!("{vault}{login}\n{bot}")).expect("good");
        assert_eq!(config.bots[0].webhook_keys[0].expose(), "", "it is read when the service starts");
    }
    let storage = "[storage]\nconversations=\"postgres://h/d\"\ncredentials={vault_role=\"bot\",mount=\"database\"}\n";
    assert!(parse(&format!("{storage}{vault}token=\"t\"\n{BOT}")).expect("good").storage.credentials.is_some());
}

#[test]
fn one_bot_is_enough() {
    let config = parse(BOT).expect("good");
    assert_eq!(
        (config.limits.app_qps.get(), config.limits.bot_concurrency.get(), config.limits.user_per_second.get()),
        (50, 10, 1)
    );
    assert_eq!(
        (config.log, config.bots[0].stream, config.bots[0].platform_id().as_str()),
        (LogFormat::Text, true, "b1")
    );
    let config = parse(&format!("http.header_timeout_seconds = 0.5\n{BOT}")).expect("good");
    assert_eq!(config.http.header_timeout, Duration::from_millis(500));
}

#[test]
fn a_secret_may_stand_in_a_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, "from a file\n").expect("written");
    let bot = BOT.replace("\"k\"", &format!("[{{ file = {:?} }}, \"k2\"]", file.path()));
    let keys = parse(&bot).expect("good").bots.remove(0).webhook_keys;
    assert_eq!(keys.iter().map(|key| key.expose()).collect::<Vec<_>>(), ["from a file", "k2"]);
    assert!(!format!("{keys:?}").contains("from a file"));
}

#[test]
fn a_message_names_file_line_key_and_what_was_expected() {
    for (text, expected) in [
        ("listen = \"nowhere\"", "bot.toml:1: listen: invalid socket address syntax"),
        ("\n\nlisten = 7", "bot.toml:3: listen: invalid type: integer `7`, expected socket address"),
        ("listn = \"x\"", "bot.toml:1: listn: unknown field `listn`, expected one of `listen`, `log`, `http`"),
        ("[limits]\n\napp_qps = 0", "bot.toml:3: limits.app_qps: invalid value: integer `0`, expected a nonzero u32"),
        ("[limits]\nuser_per_second = -1", "bot.toml:2: limits.user_per_second: invalid value: integer `-1`"),
        ("[pace]\nplan = \"pro\"", "bot.toml:2: pace.plan: expected free, pro_personal, team or enterprise"),
        ("[pace]\nrefresh_seconds = 0", "bot.toml:2: pace.refresh_seconds: expected more than 0"),
        ("[pace]\nchat_per_second = 0", "bot.toml:2: pace.chat_per_second: invalid value: integer `0`"),
        ("[http]\nbody_limit = 0", "bot.toml:2: http.body_limit: invalid value: integer `0`"),
        (
            "[http]\nheader_timeout_seconds = 0",
            "bot.toml:2: http.header_timeout_seconds: expected more than 0 and at most 86400 seconds",
        ),
        ("[http]\nbody_timeout_seconds = nan", "bot.toml:2: http.body_timeout_seconds: expected more than 0"),
        (
            "[http]\nidle_timeout_seconds = 60",
            "bot.toml:2: http.idle_timeout_seconds: must be more than request_timeout_seconds",
        ),
        ("platform.url = \"api.coze.cn\"", "bot.toml:1: platform.url: expected http:// or https://, a host"),
        ("platform.url = \"https://u:p@h\"", "bot.toml:1: platform.url: expected http:// or https://"),
        ("platform.url = \"https://h/v3\"", "bot.toml:1: platform.url: expected http:// or https://"),
        ("platform.token = \"\"", "bot.toml:1: platform.token: invalid length 0, expected a text that is not empty"),
        ("platform.token = \"a b\"", "bot.toml:1: platform.token: expected visible ASCII"),
        (
            "platform.token = { env = \"BOT_BACKEND_NO_SUCH\" }",
            "bot.toml:1: platform.token: the environment variable BOT_BACKEND_NO_SUCH is not set",
        ),
        ("platform.token = { file = \"/no/such\" }", "bot.toml:1: platform.token: cannot read the file /no/such: "),
        (
            "platform.token = { valt = \"x\" }",
            "bot.toml:1: platform.token: unknown field `valt`, expected `env`, `file`, or `vault` with `field`",
        ),
        (
            "platform.token = { vault = \"x\" }",
            "bot.toml:1: platform.token: which field of the secret in vault? expected field = \"name\"",
        ),
        ("platform.token = { env = \"HOME\", file = \"x\" }", "bot.toml:1: platform.token: invalid length 2, expected"),
        (
            "platform.token = { env = \"HOME\", field = \"x\" }",
            "bot.toml:1: platform.token: invalid length 2, expected",
        ),
        ("platform.token = { field = \"x\" }", "bot.toml:1: platform.token: invalid length 0, expected"),
        (
            "log = \"json\"\nplatform.token = { vault = \"x\", field = \"y\" }",
            "bot.toml:2: platform.token: there is no table [vault] that says where vault is",
        ),
        (
            "[storage]\nconversations = \"postgres://h/d\"\ncredentials = { vault_role = \"bot\" }",
            "bot.toml:3: storage.credentials: there is no table [vault]",
        ),
        (
            "[storage]\ncredentials = { vault_role = \"bot\" }\n[vault]\naddress = \"x\"\ntoken = \"t\"",
            "bot.toml:2: storage.credentials: they are for conversations in postgres://",
        ),
        ("\n[vault]\naddress = \"x\"", "bot.toml:2: vault: expected one of token, app_role and kubernetes"),
        (
            "[vault]\naddress = \"x\"\ntoken = { vault = \"x\", field = \"y\" }",
            "bot.toml:3: vault.token: this one cannot be in vault itself",
        ),
        (
            "[platform.service_account]\nclient_id = \"x\"",
            "bot.toml:1: platform.service_account: missing field `key_id`",
        ),
        (
            &format!("[platform.oauth]\n{}", OAUTH.replace("0123456789abcdef", "0123456789abcde")),
            "bot.toml:4: platform.oauth.password: expected at least 16 bytes",
        ),
        (
            &format!("[platform.oauth]\n{}", OAUTH.replace("https://b", "https://b/path")),
            "bot.toml:3: platform.oauth.public_url: expected http:// or https://",
        ),
        (
            &format!("[platform.oauth]\n{OAUTH}client_secret = \"a b\""),
            "bot.toml:6: platform.oauth.client_secret: expected visible ASCII",
        ),
        (
            &format!("[platform.oauth]\n{}", OAUTH.replace("token_file", "token_redis")),
            "bot.toml:5: platform.oauth.token_redis: expected redis://host:6379",
        ),
        (
            &format!("[platform.oauth]\n{OAUTH}token_redis = \"redis://h\""),
            "bot.toml:6: platform.oauth.token_redis: there is a token_file too: keep one of them",
        ),
        (
            &format!("[platform.oauth]\n{}", OAUTH.replace("token_file = \"f\"", "")),
            "bot.toml:1: platform.oauth.token_file: expected the path of a file, or token_redis for several nodes",
        ),
        (
            &format!("platform.token = \"t\"\n[platform.oauth]\n{OAUTH}"),
            "bot.toml:1: platform.token: there is platform.oauth too: keep one of them",
        ),
        (
            "[[api.issuers]]\nname = \"i\"\naudience = \"a\"\njwks_url = \"u\"\njwks_file = \"f\"",
            "bot.toml:4: api.issuers[0].jwks_url: there is a jwks_file too: keep one of them",
        ),
        ("[[api.issuers]]\nname = \"i\"", "bot.toml:1: api.issuers[0]: missing field `audience`"),
        (
            "[[api.issuers]]\nname = \"i\"\naudience = \"\"",
            "bot.toml:3: api.issuers[0].audience: expected a text that is not empty",
        ),
        (
            "[[api.issuers]]\nname = \"i\"\naudience = \"a\"\n[[api.issuers]]\nname = \"i\"\naudience = \"a\"",
            "bot.toml:5: api.issuers[1].name: the issuer is there twice",
        ),
        (
            "[[api.issuers]]\nname = \"i\"\naudience = \"a\"\ntenants = [\"\"]",
            "bot.toml:4: api.issuers[0].tenants: tenant id must be",
        ),
        ("storage.conversations = \"mysql://x\"", "bot.toml:1: storage.conversations: expected sqlite://path"),
        ("storage.sessions = \"x\"", "bot.toml:1: storage.sessions: expected memory or redis://"),
        ("[[bots]]\nid = \"b0\"\nwebhook_keys = \"k\"", "bot.toml:1: bots[0]: missing field `tenant`"),
        ("[[bots]]\nid = \"b0\"\ntenant = \"t\"", "bot.toml:1: bots[0]: missing field `webhook_keys`"),
        (
            "[[bots]]\nid = \"b 0\"\ntenant = \"t\"\nwebhook_keys = \"k\"",
            "bot.toml:2: bots[0].id: bot id must be 1 to 128 bytes of visible ASCII",
        ),
        (
            "[[bots]]\nid = \"b0\"\ntenant = \"t\"\nwebhook_keys = []",
            "bot.toml:4: bots[0].webhook_keys: invalid length 0, expected",
        ),
        (
            "[[bots]]\nid = \"b0\"\ntenant = \"t\"\nwebhook_keys = [\"1\",\"2\",\"3\",\"4\",\"5\"]",
            "bot.toml:4: bots[0].webhook_keys: expected at most 4",
        ),
        (
            "[[bots]]\nid = \"b1\"\ntenant = \"t\"\nwebhook_keys = \"k\"\n",
            "bot.toml:7: bots[1].id: the bot b1 is there twice",
        ),
        (
            "[[bots]]\nid = \"b0\"\ntenant = \"t\"\nwebhook_keys = 7",
            "bot.toml:4: bots[0].webhook_keys: invalid type: integer `7`, expected a text that is not empty, { env",
        ),
        ("= 1", "bot.toml:1: "),
        ("[http\n", "bot.toml:1: "),
    ] {
        let found = wrong(text);
        assert!(found.starts_with(expected), "{text}\n{found}");
    }
    assert_eq!(parse("").expect_err("nothing"), "bot.toml: bots: expected at least one [[bots]] table");
    let both =
        "platform.token = \"t\"\nplatform.service_account = { client_id = \"c\", key_id = \"k\", private_key = \"f\" }";
    assert_eq!(wrong(both), "bot.toml:1: platform.token: there is platform.service_account too: keep one of them");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("/no/such/bot.toml")).expect_err("not there").to_string();
    assert!(error.starts_with("/no/such/bot.toml: cannot be read: "), "{error}");
}

#[test]
fn no_message_shows_a_secret() {
    for text in [
        "platfrm_token = \"hush-hush\"",
        "platform.tokens = \"hush-hush\"",
        "platform.token = \"hush-hush\" nonsense",
        "platform.token = \"hush-hush",
        "storage.conversations = \"mysql://root:hush-hush@h\"",
        "platform.url = \"https://root:hush-hush@h\"",
    ] {
        let found = wrong(text);
        assert!(!found.contains("hush"), "{found}");
    }
}
