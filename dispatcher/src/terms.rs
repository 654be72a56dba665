//! What a request asks for, nothing open any more: its own word, else the rule's, else the door's default. Pure.

use std::time::Duration;

use protocol::request::{CachePolicy, DEADLINE_INFER, DEADLINE_MAX, Priority, Request, Task};
use protocol::token::ModelRef;

use crate::classify::Class;
use crate::ingress::Door;
use crate::rules::Set;

/// The terms of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// What is done.
    pub task: Task,
    /// By which model; `None` is the task's default.
    pub model: Option<ModelRef>,
    /// The precision that a rule asks for, where the request names none.
    pub precision: Option<String>,
    /// How urgent.
    pub priority: Priority,
    /// From the door's receipt.
    pub deadline: Duration,
    /// What the cache may do.
    pub cache: CachePolicy,
}

impl Terms {
    /// Joins the three.
    #[must_use]
    pub fn decide(request: &Request, class: &Class, set: Option<&Set>, door: &Door) -> Self {
        let open = Set::default();
        let set = set.unwrap_or(&open);
        let (priority, deadline) = match door {
            Door::Infer => (Priority::Interactive, DEADLINE_INFER),
            Door::Submit(_) => (Priority::Standard, DEADLINE_MAX),
        };
        Self {
            task: request.task.as_ref().or(set.task.as_ref()).unwrap_or(&class.task).clone(),
            model: request.model.as_ref().or(set.model.as_ref()).cloned(),
            // A rule's precision goes with its model: a request that names another model is not bound by it.
            precision: set.precision.clone().filter(|_| request.model.is_none()),
            priority: request.priority.or(set.priority).unwrap_or(priority),
            deadline: request.deadline.or(set.deadline_ms.map(Duration::from_millis)).unwrap_or(deadline),
            cache: request.cache.or(set.cache).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::header::Headers;
    use protocol::media::Modality;
    use protocol::request::{Blob, Content, Incoming, Part, Role};
    use runtime::config::ModelEntry;

    use super::*;
    use crate::catalogue::Catalogue;
    use crate::classify::{Language, classify};
    use crate::fixture::entry;
    use crate::ingress::Stored;
    use crate::route::{check_params, route};

    fn request(body: &'static str) -> Request {
        let body = bytes::Bytes::from_static(body.as_bytes());
        Request::decode(&Incoming { body: &body, headers: &Headers::new(), modality: None }).unwrap()
    }

    fn decide(body: &'static str, set: Option<&Set>, door: &Door) -> Terms {
        let request = request(body);
        let class = classify(&request, Language::Skip).unwrap();
        Terms::decide(&request, &class, set, door)
    }

    #[test]
    fn the_requests_own_word_counts_before_the_rules_before_the_doors() {
        let submit = Door::Submit(Stored { sequence: 1, delivered: 1 });
        let open = decide("hi", None, &Door::Infer);
        assert_eq!((open.task, open.priority, open.deadline), (Task::Chat, Priority::Interactive, DEADLINE_INFER));
        let open = decide("hi", None, &submit);
        assert_eq!((open.priority, open.deadline, open.cache), (Priority::Standard, DEADLINE_MAX, CachePolicy::Use));
        let set = Set {
            task: Some(Task::Complete),
            model: Some(ModelRef::parse("big").unwrap()),
            precision: Some("f16".into()),
            priority: Some(Priority::Batch),
            deadline_ms: Some(5),
            cache: Some(CachePolicy::Bypass),
        };
        let ruled = decide("hi", Some(&set), &Door::Infer);
        assert_eq!((ruled.task, ruled.priority, ruled.cache), (Task::Complete, Priority::Batch, CachePolicy::Bypass));
        assert_eq!((ruled.deadline, ruled.precision.as_deref()), (Duration::from_millis(5), Some("f16")));
        let own =
            r#"{"input":"hi","task":"chat","model":"small","priority":"standard","deadline_ms":9,"cache":"refresh"}"#;
        let own = decide(own, Some(&set), &Door::Infer);
        assert_eq!((own.task, own.priority, own.cache), (Task::Chat, Priority::Standard, CachePolicy::Refresh));
        assert_eq!((own.deadline, own.precision), (Duration::from_millis(9), None));
        assert_eq!(own.model.unwrap().name, "small");
    }

    #[test]
    fn a_lane_is_a_model_that_does_the_task() {
        let catalogue = Catalogue::new(vec![entry("a"), entry("b")]).unwrap();
        let lane = |body: &'static str| {
            let request = request(body);
            let class = classify(&request, Language::Skip).unwrap();
            let terms = Terms::decide(&request, &class, None, &Door::Infer);
            route(&class, &terms, &catalogue)
        };
        assert_eq!(lane("hi").unwrap().subject(), "jobs.text.a.interactive");
        assert_eq!(
            lane(r#"{"input":"hi","model":"b@q4_1","priority":"batch"}"#).unwrap().subject(),
            "jobs.text.b.batch"
        );
        let code = |body| lane(body).unwrap_err().code.as_str();
        assert_eq!(code(r#"{"input":"hi","task":"summarise"}"#), "invalid_request");
        assert_eq!(code(r#"{"input":"hi","task":"embed"}"#), "model_not_found");
        assert_eq!(code(r#"{"input":"hi","task":"embed","model":"a"}"#), "invalid_request");
        assert_eq!(code(r#"{"input":"hi","model":"c"}"#), "model_not_found");
        assert_eq!(code(r#"{"input":"hi","model":"a@f16"}"#), "model_not_found");
        let params = request(r#"{"input":"hi","params":{"max_tokens":2049}}"#).params;
        assert!(check_params(&params, &entry("a")).is_err());
    }

    #[test]
    fn every_task_has_its_lane_by_what_it_is_done_on() {
        let model =
            |name: &str, modality, tasks: &[Task]| ModelEntry { modality, tasks: tasks.to_vec(), ..entry(name) };
        let catalogue = Catalogue::new(vec![
            entry("chat"),
            model("eye", Modality::Image, &[Task::Classify]),
            model("texts", Modality::Text, &[Task::Embed, Task::Score]),
            model("pictures", Modality::Image, &[Task::Embed, Task::Classify]),
            model("ear", Modality::Audio, &[Task::Transcribe]),
        ])
        .unwrap();
        let media = |modality, mime: &str, data: Vec<u8>| Part {
            role: Role::User,
            content: Content::Media { modality, mime: mime.to_owned(), data: Blob(data.into()) },
        };
        let (png, wav) = (::tests::media::png(1, 1), ::tests::media::wav());
        let (png, wav) = (media(Modality::Image, "image/png", png), media(Modality::Audio, "audio/wav", wav));
        let lane = |task: Option<&str>, input: &[&Part]| {
            let mut request = request("x");
            request.input = input.iter().map(|&part| part.clone()).collect();
            request.task = task.map(|task| Task::from(task.to_owned()));
            let class = classify(&request, Language::Skip).unwrap();
            let terms = Terms::decide(&request, &class, None, &Door::Infer);
            route(&class, &terms, &catalogue).map(|lane| lane.subject()).map_err(|refusal| refusal.code.as_str())
        };
        let text = Part::user("hi");
        let subject = |name: &str| Ok(format!("jobs.{name}.interactive"));
        assert_eq!(lane(None, &[&text]), subject("text.chat"));
        assert_eq!(lane(None, &[&png]), subject("image.eye"));
        assert_eq!(lane(None, &[&wav]), subject("audio.ear"));
        assert_eq!(lane(Some("embed"), &[&text, &text, &text]), subject("text.texts"));
        assert_eq!(lane(Some("score"), &[&text, &text]), subject("text.texts"));
        assert_eq!(lane(Some("embed"), &[&png]), subject("image.pictures"));
        assert_eq!(lane(Some("transcribe"), &[&text]), Err("model_not_found"));
        assert_eq!(lane(Some("score"), &[&wav]), Err("model_not_found"));
    }
}
