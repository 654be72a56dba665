//! Step 3 of the walk: what a request is. Pure, reads headers of media and the start of texts, decodes nothing.
//!
//! What a header says of itself is a claim by a stranger: readers are bounded in time and memory, never panic, and
//! a header that cannot be true is refused here, before anything decodes the rest.

mod audio;
mod image;
mod language;

use std::time::Duration;

use protocol::media::Modality;
use protocol::request::{Content, Part, Request, Role, Task};
use protocol::{ErrorCode, Refusal};

pub use image::Dimensions;
pub use language::is_code as is_language_code;

/// Longest audio, over all parts of a request.
pub const AUDIO_DURATION_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// Whether the language of a text is wanted: it costs more than everything else here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// A rule asks for it.
    Detect,
    /// Nobody asks.
    Skip,
}

/// What a request is.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// What its lane carries: of mixed parts the one that needs most.
    pub modality: Modality,
    /// What is to be done: the client's wish, else the modality's default.
    pub task: Task,
    /// MIME type of the first part of that modality.
    pub mime: String,
    /// Bytes of all parts.
    pub bytes: usize,
    /// The largest image.
    pub image: Option<Dimensions>,
    /// Of all sounds together, as far as their headers tell.
    pub duration: Option<Duration>,
    /// ISO 639-1 code of the last text, where it is certain.
    pub language: Option<&'static str>,
}

/// Classifies a request, or refuses media whose headers lie or exceed a limit.
pub fn classify(request: &Request, language: Language) -> Result<Class, Refusal> {
    let modality = request.input.iter().map(Part::modality).max().unwrap_or(Modality::Text);
    let mut class = Class {
        modality,
        task: request.task.clone().unwrap_or_else(|| default_task(request, modality)),
        mime: "text/plain".to_owned(),
        bytes: 0,
        image: None,
        duration: None,
        language: None,
    };
    for part in request.input.iter().rev() {
        class.add(part)?;
    }
    if class.duration.is_some_and(|duration| duration > AUDIO_DURATION_MAX) {
        return Err(Refusal::new(
            ErrorCode::TooLarge,
            format!("the audio is longer than {} hours", AUDIO_DURATION_MAX.as_secs() / 3600),
        ));
    }
    if language == Language::Detect {
        class.language = last_text(&request.input).and_then(language::detect);
    }
    Ok(class)
}

/// What is done where nobody says what: media of one kind are named or written down, in a conversation they are answered.
fn default_task(request: &Request, modality: Modality) -> Task {
    let conversation = request.session.is_some() || last_text(&request.input).is_some();
    let mixed = request.input.iter().any(|part| part.modality() != modality);
    match modality {
        _ if conversation || mixed => Task::Chat,
        Modality::Text => Task::Chat,
        Modality::Image => Task::Classify,
        Modality::Audio => Task::Transcribe,
    }
}

/// The last text of the person, which rules look at.
#[must_use]
pub fn last_text(input: &[Part]) -> Option<&str> {
    input.iter().rev().filter(|part| part.role == Role::User).find_map(Part::text)
}

impl Class {
    /// Called from the last part to the first, so that `mime` ends as the first's.
    fn add(&mut self, part: &Part) -> Result<(), Refusal> {
        let (modality, mime, data) = match &part.content {
            Content::Text(text) => {
                self.bytes += text.len();
                return Ok(());
            }
            Content::Media { modality, mime, data } => (*modality, mime, &data.0),
        };
        self.bytes += data.len();
        if modality == self.modality {
            self.mime.clone_from(mime);
        }
        match modality {
            Modality::Text => {}
            Modality::Image => {
                let dimensions = image::dimensions(mime, data)?;
                self.image = self.image.max(Some(dimensions));
            }
            Modality::Audio => {
                if let Some(duration) = audio::duration(mime, data)? {
                    self.duration = Some(self.duration.unwrap_or_default().saturating_add(duration));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
