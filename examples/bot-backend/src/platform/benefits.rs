//! What the platform says of its limits (coze-platform.md §4).

use coze_core::{Error, Kind, Retry};
use coze_ratelimit::Benefits;
use serde_json::Value;

/// Resources that are read of one answer.
const MOST: usize = 16;

/// Reads the body of the answer. What is not known in it is left out, and so is a limit that is not a number.
///
/// # Errors
/// [`Kind::Upstream`] with the reason `benefits_malformed`, never sent again, when the body is no JSON, or has no `data`.
pub(super) fn read(body: &[u8]) -> Result<Benefits, Error> {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let data = answer.get("data").filter(|data| data.is_object()).ok_or_else(|| {
        Error::new(Kind::Upstream, "benefits_malformed")
            .with_message("the platform's answer about its limits is none")
            .with_retry(Retry::Never)
    })?;
    let plan = data["basic_info"]["user_level"].as_str().and_then(|level| level.parse().ok());
    let infos = data["benefit_info"].as_array().map_or(&[][..], Vec::as_slice);
    let of_calls = infos.iter().filter(|info| info["benefit_type"] == "api_run_qps").take(MOST);
    let calls_per_second = of_calls.filter_map(|info| {
        let resource = info["resource_id"].as_str().filter(|resource| !resource.is_empty())?;
        let item = &info["effective"]["item_info"];
        let calls = match item["strategy"].as_str()? {
            "unlimit" => None,
            "by_quota" => Some(number(&item["total"])?),
            _ => return None,
        };
        Some((resource.to_owned(), calls))
    });
    Ok(Benefits { plan, calls_per_second: calls_per_second.collect() })
}

/// A number above zero; the platform writes some of them as texts (coze-platform.md §2.1).
fn number(value: &Value) -> Option<u32> {
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())?;
    u32::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use coze_ratelimit::PlatformPlan;
    use serde_json::json;

    use super::*;

    fn read(data: &Value) -> Benefits {
        super::read(json!({ "code": 0, "msg": "", "data": data }).to_string().as_bytes()).expect("data")
    }

    fn info(kind: &str, resource: &str, item: &Value) -> Value {
        json!({ "benefit_type": kind, "resource_id": resource, "effective": { "item_info": item, "status": "valid" } })
    }

    #[test]
    fn the_effective_limit_is_read_and_the_rest_is_not() {
        let quota =
            |total: Value| json!({ "used": 3, "total": total, "start_at": 0, "end_at": 0, "strategy": "by_quota" });
        let benefits = read(&json!({
            "basic_info": { "user_level": "team" },
            "benefit_info": [
                info("api_run_qps", "chat", &quota(json!(250))),
                info("api_run_qps", "workflow", &quota(json!("300"))),
                info("api_run_qps", "plugin", &json!({ "total": 1, "strategy": "unlimit" })),
                info("api_run_qps", "forbidden", &json!({ "total": 1, "strategy": "forbidden" })),
                info("api_run_qps", "", &quota(json!(1))),
                info("api_run_qps", "none", &quota(json!(0))),
                info("api_run_qps", "large", &quota(json!(5_000_000_000_u64))),
                info("api_run_qps", "text", &quota(json!("many"))),
                info("call_tool_limit", "chat", &quota(json!(1))),
                7,
            ],
        }));
        let expected = [("chat", Some(250)), ("workflow", Some(300)), ("plugin", None)];
        let expected = expected.map(|(name, calls)| (name.to_owned(), calls)).to_vec();
        assert_eq!(benefits, Benefits { plan: Some(PlatformPlan::Team), calls_per_second: expected });
    }

    #[test]
    fn an_answer_without_benefits_says_nothing_and_one_that_is_none_is_refused() {
        assert_eq!(read(&json!({})), Benefits::default());
        assert_eq!(
            read(&json!({ "basic_info": { "user_level": "another" }, "benefit_info": {} })),
            Benefits::default()
        );
        for body in ["", "{", "[]", "null", r#"{"code":0}"#, r#"{"data":[]}"#] {
            let error = super::read(body.as_bytes()).expect_err("none");
            assert_eq!((error.kind(), error.reason()), (Kind::Upstream, "benefits_malformed"), "{body}");
        }
    }

    #[test]
    fn a_long_answer_is_not_read_to_its_end() {
        let item = json!({ "total": 1, "strategy": "by_quota" });
        let many: Vec<_> = (0..100).map(|n| info("api_run_qps", &n.to_string(), &item)).collect();
        assert_eq!(read(&json!({ "benefit_info": many })).calls_per_second.len(), MOST);
    }
}
