use protocol::request::{Incoming, Request};

use super::*;
use crate::classify::{classify, last_text};
use crate::fixture::entry;

fn catalogue() -> Catalogue {
    Catalogue::new(vec![entry("small"), entry("big")]).unwrap()
}

fn rules(toml: &str) -> Result<Rules, Vec<String>> {
    #[derive(Deserialize)]
    struct File {
        rule: Vec<Rule>,
    }
    let file: File = toml::from_str(toml).map_err(|error| vec![error.to_string()])?;
    Rules::new(file.rule, &catalogue(), &Pipelines::new(runtime::config::default_pipelines()))
}

/// The model that the rules choose for a text of this tenant.
fn chosen(rules: &Rules, tenant: &str, headers: &Headers, text: &str) -> Option<String> {
    let body = bytes::Bytes::from(text.to_owned());
    let request = Request::decode(&Incoming { body: &body, headers: &Headers::new(), modality: None }).unwrap();
    let class = classify(&request, rules.language()).unwrap();
    let tenant = Token::parse("tenant", tenant).unwrap();
    let facts = Facts { class: &class, tenant: &tenant, headers, text: last_text(&request.input) };
    rules.first(&facts).and_then(|set| set.model.as_ref()).map(|model| model.name.clone())
}

#[test]
fn the_first_rule_that_matches_counts() {
    let rules = rules(
        r#"
        [[rule]]
        name = "gold"
        match = { tenant = "gold", header = { name = "X-Plan", regex = "^gold" } }
        set = { model = "big", priority = "interactive" }
        [[rule]]
        match = { regex = "(?i)\\bproof\\b", size_max = 100 }
        set = { model = "big@q4_1" }
        [[rule]]
        match = { language = "de" }
        set = { model = "big" }
        [[rule]]
        match = { modality = "text", task = "chat", size_min = 50 }
        set = { model = "small" }
        "#,
    )
    .unwrap();
    let none = Headers::new();
    let gold = Headers::new().with("x-plan", "gold-2");
    assert_eq!(rules.language(), Language::Detect);
    assert_eq!(chosen(&rules, "gold", &gold, "hi").as_deref(), Some("big"));
    assert_eq!(chosen(&rules, "gold", &none, "hi"), None);
    assert_eq!(chosen(&rules, "other", &gold, "hi"), None);
    assert_eq!(chosen(&rules, "other", &none, "a Proof, please").as_deref(), Some("big"));
    assert_eq!(chosen(&rules, "other", &none, &format!("proof {}", "x".repeat(200))).as_deref(), Some("small"));
    assert_eq!(
        chosen(&rules, "other", &none, "Wie wird morgen das Wetter in den Bergen sein, und was soll ich anziehen?")
            .as_deref(),
        Some("big")
    );
}

#[test]
fn every_fault_is_named() {
    let faults = rules(
        r#"
        [[rule]]
        name = "a"
        match = { regex = "(", size_min = 5, size_max = 4, language = "xx", tenant = "a.b", task = "dance" }
        set = {}
        [[rule]]
        match = { header = { name = "", value = "a", regex = "[" } }
        set = { model = "none", deadline_ms = 0, task = "dance" }
        [[rule]]
        set = { precision = "f8" }
        [[rule]]
        set = { model = "big", precision = "f16" }
        "#,
    )
    .unwrap_err();
    assert_eq!(faults.len(), 14, "{faults:#?}");
    assert!(faults[0].starts_with("rule a:") && faults[13].starts_with("rule number 4:"), "{faults:#?}");
    assert!(rules("[[rule]]\nmatch = { colour = \"red\" }\nset = { model = \"big\" }").is_err());
    assert!(rules("[[rule]]\nset = { model = \"a b\" }").is_err());
}

#[test]
fn a_pattern_sees_a_bounded_start() {
    let rules = rules("[[rule]]\nmatch = { regex = \"end\" }\nset = { model = \"big\" }").unwrap();
    let text = "ä".repeat(REGEX_TEXT_BYTES_MAX);
    assert_eq!(chosen(&rules, "t", &Headers::new(), &format!("{text}end")), None);
    assert_eq!(chosen(&rules, "t", &Headers::new(), &format!("end{text}")).as_deref(), Some("big"));
}
