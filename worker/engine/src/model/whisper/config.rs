//! What a Whisper model's file says of it, checked.

use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::Error;
use crate::backend::dense::Heads;
use crate::plan::TokenId;

/// The greatest numbers that a file may state: above those of any published model.
const WIDTH_MAX: usize = 4096;
const LAYERS_MAX: usize = 64;
const VOCABULARY_MAX: usize = 1 << 18;
const BANDS_MAX: usize = 512;
/// Frames of the audio tower's output: 30 seconds, as every published model has.
pub(super) const SOURCE_POSITIONS: usize = 1500;
/// Tokens of a window: room for a prompt at least.
const TARGET_POSITIONS: RangeInclusive<usize> = 16..=4096;

/// `config` of the metadata, by the names that the model's authors use.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    pub(super) d_model: usize,
    pub(super) encoder_layers: usize,
    pub(super) decoder_layers: usize,
    pub(super) encoder_attention_heads: usize,
    pub(super) decoder_attention_heads: usize,
    pub(super) encoder_ffn_dim: usize,
    pub(super) decoder_ffn_dim: usize,
    pub(super) vocab_size: usize,
    pub(super) num_mel_bins: usize,
    pub(super) max_source_positions: usize,
    pub(super) max_target_positions: usize,
    pub(super) multilingual: bool,
    /// (layer, head) whose cross-attention follows the speech. A file that names none has all heads of the upper half of
    /// the layers, as OpenAI's `Whisper` takes them.
    #[serde(default)]
    pub(super) alignment_heads: Vec<(usize, usize)>,
    pub(super) suppress_ids: Vec<TokenId>,
    pub(super) suppress_ids_begin: Vec<TokenId>,
    #[serde(default)]
    pub(super) lang_ids: Vec<TokenId>,
}

impl Config {
    pub(super) fn parse(text: &str) -> Result<Config, Error> {
        let mut config: Config =
            serde_json::from_str(text).map_err(|error| Error::Malformed(format!("config of Whisper: {error}")))?;
        config.check()?;
        if config.alignment_heads.is_empty() {
            let upper = config.decoder_layers / 2..config.decoder_layers;
            let heads = config.decoder_attention_heads;
            config.alignment_heads = upper.flat_map(|layer| (0..heads).map(move |head| (layer, head))).collect();
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), Error> {
        for (name, number, max) in [
            ("d_model", self.d_model, WIDTH_MAX),
            ("encoder_layers", self.encoder_layers, LAYERS_MAX),
            ("decoder_layers", self.decoder_layers, LAYERS_MAX),
            ("encoder_attention_heads", self.encoder_attention_heads, self.d_model),
            ("decoder_attention_heads", self.decoder_attention_heads, self.d_model),
            ("encoder_ffn_dim", self.encoder_ffn_dim, 8 * WIDTH_MAX),
            ("decoder_ffn_dim", self.decoder_ffn_dim, 8 * WIDTH_MAX),
            ("vocab_size", self.vocab_size, VOCABULARY_MAX),
            ("num_mel_bins", self.num_mel_bins, BANDS_MAX),
        ] {
            if !(1..=max).contains(&number) {
                return Err(Error::Malformed(format!("{name} is {number}, of 1 to {max}")));
            }
        }
        if !TARGET_POSITIONS.contains(&self.max_target_positions) {
            let (least, most) = TARGET_POSITIONS.into_inner();
            let text = format!("max_target_positions is {}, of {least} to {most}", self.max_target_positions);
            return Err(Error::Malformed(text));
        }
        for heads in [self.encoder_attention_heads, self.decoder_attention_heads] {
            if !self.d_model.is_multiple_of(heads) {
                return Err(Error::Malformed(format!("{heads} heads do not divide a width of {}", self.d_model)));
            }
        }
        if self.max_source_positions != SOURCE_POSITIONS {
            let text = format!("windows of {} positions, not {SOURCE_POSITIONS}", self.max_source_positions);
            return Err(Error::Unsupported(text));
        }
        let placed = |&(layer, head): &(usize, usize)| layer < self.decoder_layers && head < self.decoder_heads().count;
        if !self.alignment_heads.iter().all(placed) {
            return Err(Error::Malformed("alignment_heads names a head that the model lacks".into()));
        }
        let ids = [&self.suppress_ids, &self.suppress_ids_begin, &self.lang_ids];
        if ids.into_iter().flatten().any(|id| *id as usize >= self.vocab_size) {
            return Err(Error::Malformed("an id of the configuration is beyond vocab_size".into()));
        }
        if self.multilingual && self.lang_ids.is_empty() {
            return Err(Error::Malformed("a multilingual model without lang_ids".into()));
        }
        Ok(())
    }

    pub(super) fn encoder_heads(&self) -> Heads {
        Heads { count: self.encoder_attention_heads, width: self.d_model / self.encoder_attention_heads }
    }

    pub(super) fn decoder_heads(&self) -> Heads {
        Heads { count: self.decoder_attention_heads, width: self.d_model / self.decoder_attention_heads }
    }
}

#[cfg(test)]
pub(super) fn tiny() -> Config {
    Config {
        d_model: 384,
        encoder_layers: 4,
        decoder_layers: 4,
        encoder_attention_heads: 6,
        decoder_attention_heads: 6,
        encoder_ffn_dim: 1536,
        decoder_ffn_dim: 1536,
        vocab_size: 51864,
        num_mel_bins: 80,
        max_source_positions: 1500,
        max_target_positions: 448,
        multilingual: false,
        alignment_heads: vec![(1, 0), (3, 4)],
        suppress_ids: vec![1, 50257],
        suppress_ids_begin: vec![220, 50256],
        lang_ids: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut Config)) -> Result<(), Error> {
        let mut config = tiny();
        change(&mut config);
        config.check()
    }

    #[test]
    fn without_alignment_heads_the_upper_layers_follow_the_speech() {
        let numbers = r#""d_model": 4, "encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 4, "decoder_ffn_dim": 4, "vocab_size": 9,
            "num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 16, "multilingual": false,
            "suppress_ids": [], "suppress_ids_begin": []"#;
        for heads in ["", r#", "alignment_heads": []"#] {
            let config = Config::parse(&format!("{{{numbers}{heads}}}")).expect("it is possible");
            assert_eq!(config.alignment_heads, [(1, 0), (1, 1), (2, 0), (2, 1)]);
        }
        let config = Config::parse(&format!(r#"{{{numbers}, "alignment_heads": [[0, 1]]}}"#)).expect("it is possible");
        assert_eq!(config.alignment_heads, [(0, 1)]);
    }

    #[test]
    fn impossible_shapes_are_refused() {
        check(|_| ()).expect("tiny.en is possible");
        for change in [
            (|config| config.d_model = 0) as fn(&mut Config),
            |config| config.decoder_attention_heads = 7,
            |config| config.encoder_layers = usize::MAX,
            |config| config.vocab_size = 1 << 30,
            |config| config.alignment_heads.push((4, 0)),
            |config| config.suppress_ids.push(51864),
            |config| config.max_source_positions = 3000,
            |config| config.multilingual = true,
        ] {
            assert!(check(change).is_err());
        }
    }
}
