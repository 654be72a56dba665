//! CLIP: pictures and texts become directions in one space. Written once over any device.
//!
//! Names and arithmetic are those of transformers' `CLIPModel`; vectors are of length 1, so that their products are
//! cosines.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::Error;
use crate::backend::dense::{Dense, Mask, Span, View};
use crate::backend::{Epilogue, Matrix};
use crate::encode::{Budget, Cost, Encoder, Input, InputKey, Pixels, Turn};
use crate::model::affine::{Loader, Norm, Rows};
use crate::model::direction::direction;
use crate::model::kernel::Kernel;
use crate::quant::Format;
use crate::tensors::{Tensors, little_endian};

mod config;
mod tower;

pub use config::ClipConfig;
use config::{TextConfig, VisionConfig};
use tower::{Layout, Names, Room, Tower};

/// Red, green, blue.
const CHANNELS: usize = 3;

const TEXT_NAMES: Names = Names { tower: "text_model", last: "final_layer_norm", projection: "text_projection" };
const VISION_NAMES: Names = Names { tower: "vision_model", last: "post_layernorm", projection: "visual_projection" };

/// An encoder of pictures and texts on a device.
pub struct Clip<B: Dense> {
    config: ClipConfig,
    budget: Budget,
    backend: B,
    text: Text<B>,
    vision: Vision<B>,
    layout: Layout,
    projected: Vec<f32>,
    progress: Arc<AtomicU64>,
}

struct Text<B: Dense> {
    tower: Tower<B>,
    /// (vocabulary, width)
    words: B::Weight,
    /// (positions, width)
    positions: B::Buf,
    tokens: Vec<u32>,
    places: Vec<u32>,
}

struct Vision<B: Dense> {
    tower: Tower<B>,
    /// (width, patch y * patch x * channels)
    patch: B::Weight,
    /// (1, width) what stands for a picture before it is seen
    whole: B::Weight,
    /// (patches and the whole, width)
    positions: B::Buf,
    first: Norm<B>,
    /// (pictures * height * width, channels)
    pixels: B::Buf,
    /// (pictures * patches, patch y * patch x * channels)
    unfolded: B::Buf,
    /// (pictures * patches, width)
    patches: B::Buf,
    places: Vec<u32>,
    zeros: Vec<u32>,
}

impl<B: Dense> Clip<B> {
    /// Packs the file's weights, each checked by name and shape, and makes room for batches of `budget`, or of the
    /// longest text or one picture if that is more.
    ///
    /// # Errors
    /// When the file lacks a tensor, or the device cannot hold them.
    pub fn load(tensors: &Tensors, budget: Budget, mut backend: B) -> Result<Clip<B>, Error> {
        let config = ClipConfig::read(tensors)?;
        let units = config.units(budget.units);
        let budget = Budget { units, ..budget };
        let room = Room { rows: units, inputs: budget.inputs, projection: config.projection };
        let mut loader = Loader { tensors, backend: &mut backend, rows: Rows::Many };
        let text = Text::load(&mut loader, &config.text, room)?;
        let vision = Vision::load(&mut loader, &config.vision, room)?;
        let (layout, projected, progress) = (Layout::default(), Vec::new(), Arc::default());
        Ok(Clip { config, budget, backend, text, vision, layout, projected, progress })
    }

    /// Its numbers.
    #[must_use]
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }
}

/// What the model learnt to multiply cosines with before it compares them: `exp(logit_scale)`.
///
/// # Errors
/// When the file has none.
pub fn contrast(tensors: &Tensors) -> Result<f32, Error> {
    Ok(tensors.numbers("logit_scale", &[])?.first().map_or(1.0, |scale| scale.exp()))
}

impl<B: Dense> Text<B> {
    fn load(loader: &mut Loader<'_, B>, config: &TextConfig, room: Room) -> Result<Text<B>, Error> {
        let width = config.tower.width;
        let tower = Tower::load(loader, config.tower.clone(), &TEXT_NAMES, room)?;
        let words = "text_model.embeddings.token_embedding.weight";
        let words = loader.backend.pack_stored(loader.tensors.matrix(words, config.vocabulary, width)?)?;
        let positions = "text_model.embeddings.position_embedding.weight";
        let positions = loader.tensors.numbers(positions, &[config.positions, width])?;
        let positions = loader.backend.upload(&positions, width)?;
        Ok(Text { tower, words, positions, tokens: Vec::new(), places: Vec::new() })
    }

    /// Writes a batch's rows and what they are.
    fn begin(
        &mut self,
        backend: &mut B,
        config: &TextConfig,
        (batch, layout): (&[(InputKey, &Input)], &mut Layout),
    ) -> Result<(), Error> {
        self.tokens.clear();
        self.places.clear();
        for (_, input) in batch {
            let Input::Tokens(tokens) = input else { return Err(mixed()) };
            let rows = self.tokens.len()..self.tokens.len() + tokens.len();
            let end = config.end_of(tokens).ok_or_else(mixed)?;
            layout.chosen.push(rows.start + end..rows.start + end + 1);
            layout.spans.push(Span { queries: rows.clone(), keys: rows });
            self.tokens.extend_from_slice(tokens);
            self.places.extend(0..tokens.len() as u32);
        }
        backend.gather(&self.words, &self.tokens, self.tower.rows());
        backend.add_rows(&self.positions, &self.places, self.tower.rows());
        Ok(())
    }
}

impl<B: Dense> Vision<B> {
    fn load(loader: &mut Loader<'_, B>, config: &VisionConfig, room: Room) -> Result<Vision<B>, Error> {
        let width = config.tower.width;
        let taps = config.patch * config.patch * CHANNELS;
        let tower = Tower::load(loader, config.tower.clone(), &VISION_NAMES, room)?;
        let shape = [width, CHANNELS, config.patch, config.patch];
        let kernel = Kernel::read(loader.tensors, "vision_model.embeddings.patch_embedding.weight", &shape)?;
        let whole = loader.tensors.numbers("vision_model.embeddings.class_embedding", &[width])?;
        let positions = "vision_model.embeddings.position_embedding.weight";
        let positions = loader.tensors.numbers(positions, &[config.rows(), width])?;
        let whole = Matrix { format: Format::F32, columns: width, data: &little_endian(&whole) };
        let pictures = (room.rows / config.rows()).min(room.inputs);
        let patches = pictures * (config.rows() - 1);
        Ok(Vision {
            tower,
            patch: loader.backend.pack_for_many(&[kernel.matrix()])?,
            whole: loader.backend.pack_stored(whole)?,
            positions: loader.backend.upload(&positions, width)?,
            // The name is misspelt where the model comes from.
            first: loader.norm("vision_model.pre_layrnorm", width)?,
            pixels: loader.backend.buffer(pictures * config.side * config.side, CHANNELS)?,
            unfolded: loader.backend.inputs(patches, taps)?,
            patches: loader.backend.inputs(patches, width)?,
            places: Vec::new(),
            zeros: Vec::new(),
        })
    }

    /// Writes a batch's rows and what they are: of each picture the whole, then its patches.
    fn begin(
        &mut self,
        backend: &mut B,
        config: &VisionConfig,
        (batch, layout): (&[(InputKey, &Input)], &mut Layout),
    ) -> Result<(), Error> {
        let rows = config.rows();
        let mut pictures: Vec<&[f32]> = Vec::with_capacity(batch.len());
        for (index, (_, input)) in batch.iter().enumerate() {
            let Input::Pixels(Pixels { numbers, .. }) = input else { return Err(mixed()) };
            pictures.push(numbers);
            let first = index * rows;
            layout.chosen.push(first..first + 1);
            layout.spans.push(Span { queries: first..first + rows, keys: first..first + rows });
        }
        backend.write(&pictures, &mut self.pixels);
        backend.unfold(&self.pixels, &config.window(), &mut self.unfolded);
        backend.linear(&self.unfolded, &self.patch, Epilogue::Store, &mut self.patches);
        // No row of the batch before.
        backend.write(&[], self.tower.rows_to_norm());
        self.place(0..(batch.len() * rows) as u32, |row| row % rows as u32 != 0);
        backend.scatter(View { rows: &self.patches, column: 0 }, &self.places, self.tower.rows_to_norm());
        self.zeros.clear();
        self.zeros.resize(batch.len(), 0);
        backend.gather(&self.whole, &self.zeros, &mut self.patches);
        self.place(0..(batch.len() * rows) as u32, |row| row % rows as u32 == 0);
        backend.scatter(View { rows: &self.patches, column: 0 }, &self.places, self.tower.rows_to_norm());
        self.places.clear();
        self.places.extend((0..batch.len()).flat_map(|_| 0..rows as u32));
        backend.add_rows(&self.positions, &self.places, self.tower.rows_to_norm());
        self.tower.norm_rows(backend, &self.first);
        Ok(())
    }

    fn place(&mut self, rows: std::ops::Range<u32>, keep: impl Fn(&u32) -> bool) {
        self.places.clear();
        self.places.extend(rows.filter(keep));
    }
}

fn mixed() -> Error {
    Error::Device("a batch of inputs of more than one kind".into())
}

impl<B: Dense> Encoder for Clip<B> {
    fn family(&self) -> &'static str {
        "clip"
    }

    fn budget(&self) -> Budget {
        self.budget
    }

    fn cost(&self, input: &Input) -> Result<Cost, String> {
        match input {
            Input::Tokens(tokens) => {
                let TextConfig { vocabulary, positions: limit, .. } = self.config.text;
                if tokens.is_empty() || tokens.len() > limit {
                    return Err(format!("a text of {} tokens, where the model reads 1 to {limit}", tokens.len()));
                }
                if tokens.iter().any(|token| *token as usize >= vocabulary) {
                    return Err("a token that is not in the model's vocabulary".into());
                }
                self.config.text.end_of(tokens).ok_or("a text without the token that ends it")?;
                Ok(Cost { units: tokens.len(), kind: 0 })
            }
            Input::Pixels(Pixels { height, width, numbers }) => {
                let side = self.config.vision.side;
                if (*height, *width) != (side, side) || numbers.len() != side * side * CHANNELS {
                    return Err(format!("a picture of {height} by {width}, where the model sees {side} by {side}"));
                }
                Ok(Cost { units: self.config.vision.rows(), kind: 1 })
            }
            Input::Clip(_) => Err("the model reads texts and pictures only".into()),
        }
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn encode(&mut self, batch: &[(InputKey, &Input)], turns: &mut Vec<Turn>) -> Result<(), Error> {
        let mut units = 0;
        for (_, input) in batch {
            units += self.cost(input).map_err(Error::Device)?.units;
        }
        if units > self.budget.units || batch.len() > self.budget.inputs {
            return Err(Error::Device(format!("a batch beyond {:?}", self.budget)));
        }
        let Clip { config, backend, text, vision, layout, projected, progress, .. } = self;
        layout.spans.clear();
        layout.chosen.clear();
        match batch.first() {
            None => return Ok(()),
            Some((_, Input::Pixels(_))) => {
                vision.begin(backend, &config.vision, (batch, layout))?;
                vision.tower.run(backend, (layout, Mask::Full), progress, projected);
            }
            Some(_) => {
                text.begin(backend, &config.text, (batch, layout))?;
                text.tower.run(backend, (layout, Mask::Causal), progress, projected);
            }
        }
        // What the device could not do is known only now.
        backend.step_end()?;
        turns.extend(projected.chunks_exact(config.projection).map(direction));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
