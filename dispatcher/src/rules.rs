//! `[[rule]]`: what an operator decides where a client left something open. The first rule that matches counts.
//!
//! Checked at start, every fault named; pure ever after. A rule never overrides what a request says itself.

use std::time::Duration;

use protocol::header::Headers;
use protocol::media::Modality;
use protocol::request::{CachePolicy, DEADLINE_MAX, Priority, Task};
use protocol::token::{ModelRef, Token};
use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use crate::catalogue::Catalogue;
use crate::classify::{Class, Language, is_language_code};
use crate::pipelines::Pipelines;

/// How much of a text a rule's `regex` sees: matching is linear, and this bounds the line.
pub const REGEX_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Largest compiled `regex`.
const REGEX_SIZE_MAX: usize = 1024 * 1024;
/// Most rules: each may look at every request.
const RULES_MAX: usize = 256;

/// One `[[rule]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// For logs.
    #[serde(default)]
    pub name: Option<String>,
    /// What a request must be; an empty one matches all.
    #[serde(default, rename = "match")]
    pub when: Match,
    /// What is set where the request leaves it open.
    pub set: Set,
}

/// Everything named here must hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// text, image or audio.
    pub modality: Option<Modality>,
    /// The task, a default one included.
    pub task: Option<Task>,
    /// Whose request.
    pub tenant: Option<String>,
    /// A header of the request.
    pub header: Option<HeaderMatch>,
    /// ISO 639-1 code of the last text.
    pub language: Option<String>,
    /// At least this many bytes.
    pub size_min: Option<usize>,
    /// At most this many bytes.
    pub size_max: Option<usize>,
    /// Found in the first 64 KiB of the last text.
    pub regex: Option<String>,
}

/// A header by value or pattern; with neither, it must be there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// Its name; case does not matter.
    pub name: String,
    /// Its whole value.
    #[serde(default)]
    pub value: Option<String>,
    /// Found in its value.
    #[serde(default)]
    pub regex: Option<String>,
}

/// What a rule sets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Set {
    /// What is done.
    pub task: Option<Task>,
    /// By which model of the catalogue.
    pub model: Option<ModelRef>,
    /// How its weights are stored.
    pub precision: Option<String>,
    /// How urgent.
    pub priority: Option<Priority>,
    /// From the door's receipt.
    pub deadline_ms: Option<u64>,
    /// What the cache may do.
    pub cache: Option<CachePolicy>,
}

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What the request is.
    pub class: &'a Class,
    /// Whose it is.
    pub tenant: &'a Token,
    /// Its headers.
    pub headers: &'a Headers,
    /// Its last text.
    pub text: Option<&'a str>,
}

/// A rule whose patterns are compiled.
#[derive(Debug)]
struct Checked {
    when: Match,
    header_regex: Option<Regex>,
    text_regex: Option<Regex>,
    set: Set,
}

/// The rules of a fleet, valid.
#[derive(Debug, Default)]
pub struct Rules(Vec<Checked>);

impl Rules {
    /// Checks and compiles; on fault, every fault.
    pub fn new(rules: Vec<Rule>, catalogue: &Catalogue, pipelines: &Pipelines) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        if rules.len() > RULES_MAX {
            faults.push(format!("rule: {} rules, the limit is {RULES_MAX}", rules.len()));
        }
        let checked = rules.into_iter().enumerate().filter_map(|(index, rule)| {
            let name = rule.name.clone().unwrap_or_else(|| format!("number {}", index + 1));
            let mut fault = |what: String| faults.push(format!("rule {name}: {what}"));
            check_match(&rule.when, pipelines, &mut fault);
            check_set(&rule.set, catalogue, pipelines, &mut fault);
            let header_pattern = rule.when.header.as_ref().and_then(|header| header.regex.as_deref());
            let header_regex = compile(header_pattern, "match.header.regex", &mut fault);
            let text_regex = compile(rule.when.regex.as_deref(), "match.regex", &mut fault);
            Some(Checked { header_regex: header_regex?, text_regex: text_regex?, when: rule.when, set: rule.set })
        });
        let checked = checked.collect();
        if faults.is_empty() { Ok(Self(checked)) } else { Err(faults) }
    }

    /// Whether any rule asks for a text's language.
    #[must_use]
    pub fn language(&self) -> Language {
        if self.0.iter().any(|rule| rule.when.language.is_some()) { Language::Detect } else { Language::Skip }
    }

    /// What the first rule that matches sets.
    #[must_use]
    pub fn first(&self, facts: &Facts<'_>) -> Option<&Set> {
        self.0.iter().find(|rule| rule.matches(facts)).map(|rule| &rule.set)
    }
}

impl Checked {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        let Match { modality, task, tenant, header, language, size_min, size_max, regex: _ } = &self.when;
        modality.is_none_or(|modality| modality == facts.class.modality)
            && task.as_ref().is_none_or(|task| *task == facts.class.task)
            && tenant.as_ref().is_none_or(|tenant| tenant == facts.tenant.as_str())
            && header.as_ref().is_none_or(|header| self.header_matches(header, facts.headers))
            && language.as_deref().is_none_or(|language| Some(language) == facts.class.language)
            && size_min.is_none_or(|least| facts.class.bytes >= least)
            && size_max.is_none_or(|most| facts.class.bytes <= most)
            && self.text_matches(facts.text)
    }

    fn header_matches(&self, header: &HeaderMatch, headers: &Headers) -> bool {
        headers.get(&header.name).is_some_and(|value| {
            header.value.as_ref().is_none_or(|wanted| wanted == value)
                && self.header_regex.as_ref().is_none_or(|regex| regex.is_match(value))
        })
    }

    fn text_matches(&self, text: Option<&str>) -> bool {
        self.text_regex.as_ref().is_none_or(|regex| {
            text.is_some_and(|text| regex.is_match(&text[..text.floor_char_boundary(REGEX_TEXT_BYTES_MAX)]))
        })
    }
}

fn check_match(when: &Match, pipelines: &Pipelines, fault: &mut impl FnMut(String)) {
    if let Some(Task::Pipeline(task)) = &when.task
        && !pipelines.has(task)
    {
        fault(format!("match.task '{task}' is neither a task nor a pipeline"));
    }
    if let Some(tenant) = &when.tenant
        && Token::parse("tenant", tenant).is_err()
    {
        fault("match.tenant is no tenant's name".to_owned());
    }
    if let Some(language) = when.language.as_deref().filter(|language| !is_language_code(language)) {
        fault(format!("match.language '{language}' is no ISO 639-1 code that can be told"));
    }
    if let (Some(least), Some(most)) = (when.size_min, when.size_max)
        && least > most
    {
        fault("match.size_min is greater than match.size_max".to_owned());
    }
    if let Some(header) = &when.header {
        if header.name.is_empty() {
            fault("match.header.name is empty".to_owned());
        }
        if header.value.is_some() && header.regex.is_some() {
            fault("match.header has both value and regex".to_owned());
        }
    }
}

fn check_set(set: &Set, catalogue: &Catalogue, pipelines: &Pipelines, fault: &mut impl FnMut(String)) {
    if *set == Set::default() {
        fault("set is empty".to_owned());
    }
    if let Some(Task::Pipeline(task)) = &set.task
        && !pipelines.has(task)
    {
        fault(format!("set.task '{task}' is neither a task nor a pipeline"));
    }
    if let Some(model) = &set.model
        && let Err(refusal) = catalogue.find(model, set.precision.as_deref())
    {
        fault(format!("set.model: {}", refusal.message));
    }
    if set.model.is_none()
        && let Some(precision) = set.precision.as_deref().filter(|precision| !catalogue.has_precision(precision))
    {
        fault(format!("set.precision: no model of the catalogue is stored as '{precision}'"));
    }
    if set.deadline_ms.is_some_and(|ms| ms == 0 || Duration::from_millis(ms) > DEADLINE_MAX) {
        fault(format!("set.deadline_ms must be 1 to {}", DEADLINE_MAX.as_millis()));
    }
}

/// `None` where the pattern is at fault, `Some(None)` where there is none.
fn compile(pattern: Option<&str>, what: &str, fault: &mut impl FnMut(String)) -> Option<Option<Regex>> {
    let Some(pattern) = pattern else {
        return Some(None);
    };
    match RegexBuilder::new(pattern).size_limit(REGEX_SIZE_MAX).build() {
        Ok(regex) => Some(Some(regex)),
        Err(error) => {
            fault(format!("{what}: {error}"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
