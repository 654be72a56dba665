//! From a model file to everything that answers with it.

use std::path::Path;
use std::sync::Arc;

use crate::Error;
use crate::backend::StepLimits;
use crate::backend::cpu::Cpu;
use crate::device::{self, Device};
use crate::engine::EngineConfig;
use crate::gguf::Gguf;
use crate::model::{Decoder, Model, ModelConfig, Room};
use crate::plan::BLOCK_TOKENS;
use crate::simd::Level;
use crate::text::{Template, Tokenizer};

/// A model, its tokenizer, and what there is to know about it.
pub struct Loaded {
    /// On its device, its weights packed.
    pub model: Box<dyn Model>,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How a chat becomes a text; `None` for a model that is no chat model.
    pub template: Option<Template>,
    /// For logs and status.
    pub info: Info,
}

/// What a model file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Architecture.
    pub family: String,
    /// Layers.
    pub layers: usize,
    /// Numbers of the residual stream.
    pub width: usize,
    /// Tokens the model was trained to look at.
    pub context: usize,
    /// Tokens there are.
    pub vocabulary: usize,
    /// Numbers in all tensors.
    pub parameters: u64,
}

/// Loads the model at `path` for the best instructions of this machine.
pub fn load(path: &Path, config: &EngineConfig) -> Result<Loaded, Error> {
    load_on(path, config, &Device::processor())
}

/// Loads the model at `path` onto `device`.
pub fn load_on(path: &Path, config: &EngineConfig, device: &Device) -> Result<Loaded, Error> {
    let gguf = Gguf::open(path)?;
    let shape = ModelConfig::from_gguf(&gguf)?;
    let info = Info {
        family: shape.family.clone(),
        layers: shape.layers,
        width: shape.width,
        context: shape.context,
        vocabulary: shape.vocabulary,
        parameters: gguf.tensors().map(|tensor| tensor.shape.iter().product::<u64>()).sum(),
    };
    Ok(Loaded {
        tokenizer: Arc::new(Tokenizer::from_gguf(&gguf)?),
        template: Template::from_gguf(&gguf)?,
        model: decoder(&gguf, shape, config, device)?,
        info,
    })
}

fn decoder(gguf: &Gguf, shape: ModelConfig, config: &EngineConfig, device: &Device) -> Result<Box<dyn Model>, Error> {
    match device {
        Device::Processor(level) => Ok(Box::new(on_processor(gguf, shape, config, *level)?)),
        Device::Cuda(card) => {
            let (room, limits) = room_and_limits(&shape, config)?;
            Ok(Box::new(Decoder::load(gguf, shape, room, device::cuda(card, limits)?)?))
        }
    }
}

/// The decoder of `gguf` on the processor.
pub(crate) fn on_processor(
    gguf: &Gguf,
    shape: ModelConfig,
    config: &EngineConfig,
    level: Level,
) -> Result<Decoder<Cpu>, Error> {
    let (room, limits) = room_and_limits(&shape, config)?;
    Decoder::load(
        gguf,
        shape,
        room,
        Cpu::new(level, config.threads, limits).with(config.activations).with_prompts_by(level.unit()),
    )
}

/// The room of a model, and what a step of its device may hold.
pub(crate) fn room_and_limits(shape: &ModelConfig, config: &EngineConfig) -> Result<(Room, StepLimits), Error> {
    let room = room(config)?;
    let tables = shape.context.min(config.kv_tokens).div_ceil(BLOCK_TOKENS).saturating_mul(room.outputs);
    Ok((room, StepLimits { rows: room.step_tokens, outputs: room.outputs, blocks: tables }))
}

fn room(config: &EngineConfig) -> Result<Room, Error> {
    let room = Room {
        step_tokens: config.step_tokens,
        outputs: config.sequences_max.min(config.step_tokens),
        blocks: config.kv_tokens / BLOCK_TOKENS,
    };
    if room.step_tokens == 0 || room.outputs == 0 || room.blocks == 0 || u32::try_from(room.blocks).is_err() {
        return Err(Error::Unsupported(format!("an engine without room: {config:?}")));
    }
    Ok(room)
}
