//! How many tokens the models' caches may hold, decided before anything is loaded. Pure.
//!
//! Weights and workspace are there from the start; a cache takes its memory as it is used, so that a worker which
//! promised too much would be killed in the middle of its work.

use engine::needs::Needs;
use protocol::media::Modality;
use runtime::memory::mib;

use crate::reader::MediaBudget;

/// Tokens of a cache where nobody says otherwise and memory does not matter.
pub const KV_TOKENS: usize = 32 * 1024;
/// Kept for the process itself, its requests and replies: this part of the memory, and never less than the least.
const PROCESS_PART: u64 = 8;
/// See [`PROCESS_PART`].
const PROCESS_LEAST: u64 = 64 << 20;
/// A cache that cannot hold one context of this many tokens is not worth a worker.
const CONTEXT_LEAST: usize = 2048;

/// Pictures and sounds may take this part of the memory, never less than the least nor more than the most.
const MEDIA_PART: u64 = 4;
/// See [`MEDIA_PART`]. A picture of more than three megapixels, or a sound of almost six minutes.
const MEDIA_LEAST: u64 = 64 << 20;
/// See [`MEDIA_PART`]. All that a door lets pass: the longest sound takes a third.
const MEDIA_MOST: u64 = 3 << 30;

/// What pictures and sounds may take of the memory.
#[must_use]
pub fn media(allowed: Option<u64>) -> MediaBudget {
    MediaBudget { bytes: allowed.map_or(MEDIA_MOST, |bytes| (bytes / MEDIA_PART).clamp(MEDIA_LEAST, MEDIA_MOST)) }
}

/// A model that is to be loaded.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// What its lanes carry.
    pub modality: Modality,
    /// What it takes.
    pub needs: Needs,
    /// Most tokens of prompt and answer, by the catalogue.
    pub context: usize,
}

/// Where weights and caches go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Bytes; `None` is no limit.
    allowed: Option<u64>,
    /// On a card: jobs at once. The process itself, pictures and sounds lie elsewhere.
    card_slots: Option<usize>,
}

impl Store {
    /// The process's own memory.
    #[must_use]
    pub fn host(allowed: Option<u64>) -> Self {
        Self { allowed, card_slots: None }
    }

    /// A part of a GPU's, for a worker of so many jobs at once.
    #[must_use]
    pub fn card(allowed: u64, slots: usize) -> Self {
        Self { allowed: Some(allowed), card_slots: Some(slots) }
    }

    /// Tokens of a cache where nobody says otherwise: on a card, which is there for it, what all jobs could use.
    fn usual(self, parts: &[Part]) -> usize {
        let longest = parts.iter().filter(|part| part.needs.kv_token > 0);
        let longest = longest.map(|part| part.context.min(part.needs.context)).max().unwrap_or(KV_TOKENS);
        self.card_slots.map_or(KV_TOKENS, |slots| slots.saturating_mul(longest))
    }
}

/// How many tokens every model's cache holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// As many as are wanted.
    Wanted(usize),
    /// As many as there is memory for; the sentence says why.
    Lowered(usize, String),
}

/// Shares the memory out: `wanted` tokens or none of it, and where nobody wants a number as many as fit. `Err` is a
/// sentence with what to do.
pub fn fit(parts: &[Part], wanted: Option<usize>, store: Store) -> Result<Fit, String> {
    let most = wanted.unwrap_or_else(|| store.usual(parts));
    let Some(allowed) = store.allowed else { return Ok(Fit::Wanted(most)) };
    let account = Account::of(parts, store, allowed);
    if account.total(most) <= allowed {
        return Ok(Fit::Wanted(most));
    }
    let room = account.tokens();
    let least = parts.iter().filter(|part| part.needs.kv_token > 0).map(Part::least).max().unwrap_or_default();
    match wanted {
        _ if account.kv_token == 0 => Err(account.crowded()),
        None if room >= least => Ok(Fit::Lowered(room, account.lowered(room))),
        Some(wanted) if room > 0 => Err(account.refused(wanted, room)),
        _ => Err(account.hopeless(least.min(most))),
    }
}

impl Part {
    fn least(&self) -> usize {
        self.context.min(self.needs.context).min(CONTEXT_LEAST)
    }
}

/// Where the memory goes, in bytes.
struct Account {
    names: String,
    allowed: u64,
    process: u64,
    /// Pictures and sounds; nothing where no model takes any.
    media: u64,
    weights: u64,
    workspace: u64,
    /// A token in the cache of every model.
    kv_token: u64,
}

impl Account {
    fn of(parts: &[Part], store: Store, allowed: u64) -> Self {
        let sum = |bytes: fn(&Needs) -> u64| parts.iter().map(|part| bytes(&part.needs)).fold(0, u64::saturating_add);
        Self {
            names: parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(", "),
            allowed,
            process: if store.card_slots.is_some() { 0 } else { process(allowed) },
            media: if store.card_slots.is_none() && parts.iter().any(|part| part.modality != Modality::Text) {
                media(Some(allowed)).bytes
            } else {
                0
            },
            weights: sum(|needs| needs.weights),
            workspace: sum(|needs| needs.workspace),
            kv_token: sum(|needs| needs.kv_token),
        }
    }

    fn total(&self, tokens: usize) -> u64 {
        let cache = self.kv_token.saturating_mul(tokens as u64);
        [self.process, self.media, self.weights, self.workspace, cache].into_iter().fold(0, u64::saturating_add)
    }

    /// Tokens for which there is memory, in whole blocks.
    fn tokens(&self) -> usize {
        let left = self.allowed.saturating_sub(self.total(0));
        let tokens = usize::try_from(left / self.kv_token.max(1)).unwrap_or(usize::MAX);
        tokens / engine::plan::BLOCK_TOKENS * engine::plan::BLOCK_TOKENS
    }

    /// Where the memory goes, for people.
    fn sheet(&self) -> String {
        let media = match self.media {
            0 => String::new(),
            bytes => format!(", pictures and sounds {} MiB", mib(bytes)),
        };
        format!(
            "of the {} MiB that this process may use, the weights of {} take {} MiB, its workspace {} MiB, the process \
             itself {} MiB{media}, and 1000 tokens of key-value cache {} MiB",
            mib(self.allowed),
            self.names,
            mib(self.weights),
            mib(self.workspace),
            mib(self.process),
            mib(self.kv_token.saturating_mul(1000)),
        )
    }

    fn crowded(&self) -> String {
        format!(
            "the models do not fit: {}; give the process {} MiB of memory, or set worker.models to fewer or smaller ones",
            self.sheet(),
            self.enough(0)
        )
    }

    fn lowered(&self, room: usize) -> String {
        format!(
            "the key-value cache holds {room} tokens instead of {KV_TOKENS}: {}; with {} MiB all would fit",
            self.sheet(),
            self.enough(KV_TOKENS)
        )
    }

    fn refused(&self, wanted: usize, room: usize) -> String {
        format!(
            "a key-value cache of {wanted} tokens does not fit: {}; give the process {} MiB of memory, or set \
             worker.kv_tokens to at most {room}",
            self.sheet(),
            self.enough(wanted)
        )
    }

    fn hopeless(&self, least: usize) -> String {
        format!(
            "there is no memory for a key-value cache of even {least} tokens: {}; give the process {} MiB of memory, or \
             set worker.kv_tokens to less or worker.models to fewer or smaller ones",
            self.sheet(),
            self.enough(least)
        )
    }

    /// Memory in MiB with which so many tokens fit: the parts of the process and of media grow with it, but slower.
    fn enough(&self, tokens: usize) -> u64 {
        let fixed = self.total(tokens).saturating_sub(self.process).saturating_sub(self.media);
        let with = |allowed: u64| {
            let media = if self.media > 0 { media(Some(allowed)).bytes } else { 0 };
            fixed.saturating_add(process(allowed)).saturating_add(media)
        };
        // Each round comes nearer by at least half of what is missing.
        mib((0..u64::BITS).fold(fixed, |allowed, _| with(allowed)))
    }
}

fn process(allowed: u64) -> u64 {
    (allowed / PROCESS_PART).max(PROCESS_LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(parts: &[Part], wanted: Option<usize>, allowed: Option<u64>) -> Result<Fit, String> {
        super::fit(parts, wanted, Store::host(allowed))
    }

    const MIB: u64 = 1 << 20;

    fn part(name: &str, context: usize) -> Part {
        let needs = Needs { weights: 90 * MIB, workspace: 40 * MIB, kv_token: 23_040, context: 8192 };
        Part { name: name.to_owned(), modality: Modality::Text, needs, context }
    }

    fn encoder(name: &str, modality: Modality) -> Part {
        let needs = Needs { weights: 150 * MIB, workspace: 20 * MIB, kv_token: 0, context: 0 };
        Part { name: name.to_owned(), modality, needs, context: 448 }
    }

    #[test]
    fn what_fits_is_as_wanted() {
        let one = [part("m", 8192)];
        assert_eq!(fit(&one, None, None), Ok(Fit::Wanted(KV_TOKENS)));
        assert_eq!(fit(&one, None, Some(4096 * MIB)), Ok(Fit::Wanted(KV_TOKENS)));
        assert_eq!(fit(&one, Some(512), Some(256 * MIB)), Ok(Fit::Wanted(512)), "less than a context, as told");
        assert_eq!(fit(&one, Some(100_000), Some(8192 * MIB)), Ok(Fit::Wanted(100_000)));
    }

    #[test]
    fn what_nobody_set_is_lowered_to_what_fits() {
        let one = [part("m", 8192)];
        let Ok(Fit::Lowered(tokens, why)) = fit(&one, None, Some(512 * MIB)) else { panic!("not lowered") };
        assert!((14_000..15_000).contains(&tokens) && tokens.is_multiple_of(16), "{tokens}");
        assert!(why.contains("512 MiB") && why.contains(&tokens.to_string()), "{why}");
        // Two share: less than half is left for each.
        let two = [part("m", 8192), part("n", 8192)];
        let Ok(Fit::Lowered(shared, _)) = fit(&two, None, Some(512 * MIB)) else { panic!("not lowered") };
        assert!(shared < tokens / 2, "{shared}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_remedies() {
        let one = [part("m", 8192)];
        let refused = fit(&one, Some(KV_TOKENS), Some(512 * MIB)).unwrap_err();
        assert!(refused.contains("worker.kv_tokens to at most 14") && refused.contains("MiB of memory"), "{refused}");
        let hopeless = fit(&one, None, Some(230 * MIB)).unwrap_err();
        assert!(hopeless.contains("2048") && hopeless.contains("worker.kv_tokens"), "{hopeless}");
        assert!(fit(&[part("m", 512)], None, Some(230 * MIB)).is_ok(), "a short context fits");
        assert!(fit(&one, Some(16), Some(100 * MIB)).is_err(), "not even its weights");
    }

    #[test]
    fn what_is_called_enough_is_enough() {
        for wanted in [16, 2048, KV_TOKENS, 1 << 20] {
            let one = [part("m", 8192)];
            let enough = Account::of(&one, Store::host(None), MIB).enough(wanted) * MIB;
            assert_eq!(fit(&one, Some(wanted), Some(enough + MIB)), Ok(Fit::Wanted(wanted)));
            assert!(fit(&one, Some(wanted), Some(enough - 2 * MIB)).is_err());
        }
    }

    #[test]
    fn media_take_a_part_where_a_model_takes_them() {
        let texts = [part("m", 8192), encoder("e", Modality::Text)];
        let sounds = [part("m", 8192), encoder("w", Modality::Audio)];
        let room = |parts: &[Part]| match fit(parts, None, Some(640 * MIB)) {
            Ok(Fit::Lowered(tokens, why)) => (tokens, why),
            other => panic!("{other:?}"),
        };
        assert!(room(&texts).0 > room(&sounds).0 + 5000);
        assert!(room(&sounds).1.contains("pictures and sounds 160 MiB"), "{}", room(&sounds).1);
        let account = Account::of(&sounds, Store::host(None), MIB);
        let enough = account.enough(KV_TOKENS) * MIB;
        assert_eq!(fit(&sounds, None, Some(enough + MIB)), Ok(Fit::Wanted(KV_TOKENS)));
        assert!(matches!(fit(&sounds, None, Some(enough - 2 * MIB)), Ok(Fit::Lowered(..))));
    }

    #[test]
    fn encoders_alone_need_no_cache() {
        let two = [encoder("e", Modality::Text), encoder("i", Modality::Image)];
        assert_eq!(fit(&two, None, Some(1024 * MIB)), Ok(Fit::Wanted(KV_TOKENS)));
        let crowded = fit(&two, None, Some(256 * MIB)).unwrap_err();
        assert!(crowded.contains("do not fit") && crowded.contains("worker.models"), "{crowded}");
    }

    #[test]
    fn a_card_holds_what_all_jobs_could_use() {
        let one = [part("m", 8192)];
        let on_card = |bytes| super::fit(&one, None, Store::card(bytes, 32)).unwrap();
        assert_eq!(on_card(1 << 40), Fit::Wanted(32 * 8192));
        let Fit::Lowered(tokens, _) = on_card(1 << 30) else { panic!("not lowered") };
        assert!((KV_TOKENS / 2..32 * 8192).contains(&tokens), "{tokens}");
    }
}
