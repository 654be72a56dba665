//! The numbers of a CLIP, as transformers' configurations name them.

use serde::Deserialize;

use super::CHANNELS;
use crate::Error;
use crate::backend::dense::{Padding, Window};
use crate::plan::TokenId;
use crate::tensors::Tensors;

/// Bounds of what a file may claim: above all models in sight, below what would overflow.
const LAYERS_MAX: usize = 1 << 10;
const WIDTH_MAX: usize = 1 << 16;
const TOKENS_MAX: usize = 1 << 22;
const SIDE_MAX: usize = 1 << 12;
const PROJECTION_MAX: usize = 1 << 16;
/// As the first configurations name the last token, whatever it is: the greatest of the text is meant.
const GREATEST: TokenId = 2;

/// The numbers of a network, by the names that model authors use.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct ClipConfig {
    /// Width of the common space.
    #[serde(rename = "projection_dim")]
    pub projection: usize,
    /// Of texts.
    #[serde(rename = "text_config")]
    pub text: TextConfig,
    /// Of pictures.
    #[serde(rename = "vision_config")]
    pub vision: VisionConfig,
    /// Height and width that pictures are brought to, where the file says how: as `crate::encode::Picturing` has it.
    #[serde(rename = "size")]
    pub brought_to: Option<usize>,
}

/// How texts are read.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct TextConfig {
    /// The layers.
    #[serde(flatten)]
    pub tower: TowerConfig,
    /// Tokens there are.
    #[serde(rename = "vocab_size")]
    pub vocabulary: usize,
    /// The longest text.
    #[serde(rename = "max_position_embeddings")]
    pub positions: usize,
    /// The token that ends a text and stands for it.
    #[serde(rename = "eos_token_id")]
    pub end: TokenId,
}

/// How pictures are read.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct VisionConfig {
    /// The layers.
    #[serde(flatten)]
    pub tower: TowerConfig,
    /// Height and width of a picture.
    #[serde(rename = "image_size")]
    pub side: usize,
    /// Height and width of a patch.
    #[serde(rename = "patch_size")]
    pub patch: usize,
}

impl ClipConfig {
    /// Reads and checks the numbers of a file.
    ///
    /// # Errors
    /// [`Error::Malformed`] for missing or impossible numbers, and for variants that are not computed.
    pub fn read(tensors: &Tensors) -> Result<ClipConfig, Error> {
        let config: ClipConfig = tensors.config()?;
        let within = |number: usize, max: usize| (1..=max).contains(&number);
        let ClipConfig { projection, text, vision, .. } = &config;
        let tables = within(text.vocabulary, TOKENS_MAX) && within(text.positions, TOKENS_MAX);
        let sides = within(vision.side, SIDE_MAX) && within(vision.patch, vision.side);
        let towers = text.tower.is_possible() && vision.tower.is_possible();
        if !(tables && sides && towers && within(*projection, PROJECTION_MAX)) {
            return Err(Error::Malformed(format!("impossible numbers: {config:?}")));
        }
        match config.brought_to {
            Some(side) if side != vision.side => Err(Error::Malformed(format!(
                "pictures are brought to {side} x {side}, and the model sees {0} x {0}",
                vision.side
            ))),
            _ => Ok(config),
        }
    }

    /// Numbers that batches of so many rows and inputs take in scratch.
    #[must_use]
    pub fn scratch(&self, rows: usize, inputs: usize) -> usize {
        let rows = self.units(rows);
        let tower = |tower: &TowerConfig| {
            let widths = (6 * tower.width + tower.inner).saturating_mul(rows);
            widths.saturating_add((2 * tower.width + self.projection).saturating_mul(inputs))
        };
        let side = self.vision.side;
        // The pixels twice: as they come, and unfolded to patches.
        let picture = 2 * CHANNELS * side * side + (self.vision.rows() - 1) * self.vision.tower.width;
        let pictures = (rows / self.vision.rows()).min(inputs).saturating_mul(picture);
        tower(&self.text.tower).saturating_add(tower(&self.vision.tower)).saturating_add(pictures)
    }

    /// Rows of a batch that holds the longest text, and a picture.
    pub(super) fn units(&self, rows: usize) -> usize {
        rows.max(self.text.positions).max(self.vision.rows())
    }
}

impl TextConfig {
    /// Where the token that stands for a text is.
    pub(super) fn end_of(&self, tokens: &[TokenId]) -> Option<usize> {
        let end = if self.end == GREATEST { *tokens.iter().max()? } else { self.end };
        tokens.iter().position(|token| *token == end)
    }
}

impl VisionConfig {
    /// Patches in a row, and rows of patches.
    pub(super) fn grid(&self) -> usize {
        self.side / self.patch
    }

    /// Rows that a picture becomes: one for each patch, and one that stands for it.
    pub(super) fn rows(&self) -> usize {
        self.grid() * self.grid() + 1
    }

    pub(super) fn window(&self) -> Window {
        let patch = (self.patch, self.patch);
        Window { size: (self.side, self.side), kernel: patch, stride: patch, padding: Padding::default() }
    }
}

/// The numbers of a tower, by the names that model authors use.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct TowerConfig {
    /// Numbers of the residual stream.
    #[serde(rename = "hidden_size")]
    pub width: usize,
    /// Numbers inside the feed-forward.
    #[serde(rename = "intermediate_size")]
    pub inner: usize,
    /// Blocks of attention and feed-forward.
    #[serde(rename = "num_hidden_layers")]
    pub layers: usize,
    /// Heads of attention.
    #[serde(rename = "num_attention_heads")]
    pub heads: usize,
    /// Added to the variance in norms.
    #[serde(rename = "layer_norm_eps")]
    pub epsilon: f32,
    /// Inside the feed-forward.
    #[serde(rename = "hidden_act")]
    pub activation: Curve,
}

/// The activations that are computed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// As `OpenAI` trained.
    QuickGelu,
    /// As most others did.
    Gelu,
}

impl TowerConfig {
    /// Whether the numbers can be those of a network.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let within = |number: usize, max: usize| (1..=max).contains(&number);
        let sizes = within(self.width, WIDTH_MAX) && within(self.inner, WIDTH_MAX) && within(self.layers, LAYERS_MAX);
        let heads = within(self.heads, self.width) && self.width.is_multiple_of(self.heads);
        sizes && heads && self.epsilon > 0.0 && self.epsilon.is_finite()
    }
}
