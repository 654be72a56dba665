//! The audio tower: 30 seconds of mel frames become 1500 rows that the decoder looks at.

use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{Config, SOURCE_POSITIONS};
use super::layers::{Bias, EPSILON, FeedForward, Source};
use crate::Error;
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Padding, Span, View, Window};
use crate::model::affine::{Affine, Loader, Norm, Rows};
use crate::tensors::Tensors;

/// Frames of a window.
pub(super) const WINDOW_FRAMES: usize = 2 * SOURCE_POSITIONS;
/// Windows computed side by side on a processor: their rows fill it, and more would only cost memory.
pub(super) const WINDOWS_AT_ONCE: usize = 2;

/// The audio tower of a model.
pub(super) struct Tower<D: Dense> {
    first: Affine<D>,
    second: Affine<D>,
    positions: D::Buf, // (1500, width)
    layers: Vec<Layer<D>>,
    norm: Norm<D>,
    heads: Heads,
    room: Room<D>,
    windows: usize,
}

struct Layer<D: Dense> {
    norm: Norm<D>,
    qkv: Affine<D>,
    out: Affine<D>,
    feed_forward: FeedForward<D>,
}

/// Memory for [`Tower::windows`] windows.
struct Room<D: Dense> {
    mel: D::Buf,    // (3000 a window, bands)
    near: D::Buf,   // (3000 a window, 3 * bands)
    frames: D::Buf, // (3000 a window, width)
    halved: D::Buf, // (1500 a window, 3 * width)
    x: D::Buf,      // (1500 a window, width)
    normed: D::Buf, // (1500 a window, width)
    qkv: D::Buf,    // (1500 a window, 3 * width)
    hidden: D::Buf, // (1500 a window, feed-forward)
    seen: D::Buf,   // (1500 a window, width)
}

impl<D: Dense> Tower<D> {
    pub(super) fn new(tensors: &Tensors, config: &Config, device: &mut D) -> Result<Tower<D>, Error> {
        let (width, bands) = (config.d_model, config.num_mel_bins);
        let mut source = Source { loader: Loader { tensors, backend: device, rows: Rows::Many }, width };
        let layer = |index| Layer::new(&mut source, &format!("model.encoder.layers.{index}"), config);
        let layers = (0..config.encoder_layers).map(layer).collect::<Result<_, Error>>()?;
        Ok(Tower {
            layers,
            first: source.convolution("model.encoder.conv1", width, bands)?,
            second: source.convolution("model.encoder.conv2", width, width)?,
            positions: source.positions("model.encoder.embed_positions.weight", SOURCE_POSITIONS)?,
            norm: source.norm("model.encoder.layer_norm")?,
            heads: config.encoder_heads(),
            windows: WINDOWS_AT_ONCE * source.loader.backend.appetite(),
            room: Room::new(config, source.loader.backend)?,
        })
    }

    /// Windows that it hears side by side.
    pub(super) fn windows(&self) -> usize {
        self.windows
    }

    /// Computes up to [`Tower::windows`] windows of mel frames, (3000, bands) each, into (windows, 1500, width).
    pub(super) fn listen(&mut self, device: &mut D, mel: &[&[f32]], progress: &AtomicU64) -> &D::Buf {
        let windows = mel.len();
        let room = &mut self.room;
        device.write(mel, &mut room.mel);
        let [every, second] = [1, 2].map(|step| neighbours(WINDOW_FRAMES, step));
        let (near, halved) = (&mut room.near, &mut room.halved);
        self.first.convolve(device, (&room.mel, &every), Activation::Gelu, (near, &mut room.frames));
        self.second.convolve(device, (&room.frames, &second), Activation::Gelu, (halved, &mut room.x));
        let positions: Vec<u32> = (0..windows).flat_map(|_| 0..SOURCE_POSITIONS as u32).collect();
        device.add_rows(&self.positions, &positions, &mut room.x);
        let span = |window: usize| {
            let rows = window * SOURCE_POSITIONS..(window + 1) * SOURCE_POSITIONS;
            Span { queries: rows.clone(), keys: rows }
        };
        let spans: Vec<Span> = (0..windows).map(span).collect();
        for layer in &self.layers {
            layer.run(device, room, &spans, self.heads);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        self.norm.apply(device, &room.x, EPSILON, &mut room.normed);
        &room.normed
    }
}

impl<D: Dense> Layer<D> {
    fn new(source: &mut Source<'_, D>, name: &str, config: &Config) -> Result<Layer<D>, Error> {
        let parts = [("q_proj", Bias::Stored), ("k_proj", Bias::Zero), ("v_proj", Bias::Stored)];
        Ok(Layer {
            norm: source.norm(&format!("{name}.self_attn_layer_norm"))?,
            qkv: source.fused(&format!("{name}.self_attn"), &parts)?,
            out: source.linear(&format!("{name}.self_attn.out_proj"), config.d_model, config.d_model)?,
            feed_forward: source.feed_forward(name, config.encoder_ffn_dim)?,
        })
    }

    fn run(&self, device: &mut D, room: &mut Room<D>, spans: &[Span], heads: Heads) {
        let width = heads.count * heads.width;
        self.norm.apply(device, &room.x, EPSILON, &mut room.normed);
        self.qkv.replace(device, &room.normed, Activation::None, &mut room.qkv);
        let view = |part: usize| View { rows: &room.qkv, column: part * width };
        let inputs = Attended { queries: view(0), keys: view(1), values: view(2) };
        device.attend(inputs, spans, heads, Mask::Full, &mut room.seen);
        self.out.add(device, &room.seen, &mut room.x);
        self.feed_forward.add(device, &mut room.x, &mut room.normed, &mut room.hidden);
    }
}

impl<D: Dense> Room<D> {
    fn new(config: &Config, device: &D) -> Result<Room<D>, Error> {
        let (width, bands) = (config.d_model, config.num_mel_bins);
        let windows = WINDOWS_AT_ONCE * device.appetite();
        let (frames, rows) = (windows * WINDOW_FRAMES, windows * SOURCE_POSITIONS);
        Ok(Room {
            mel: device.buffer(frames, bands)?,
            near: device.inputs(frames, 3 * bands)?,
            frames: device.inputs(frames, width)?,
            halved: device.inputs(rows, 3 * width)?,
            x: device.buffer(rows, width)?,
            normed: device.inputs(rows, width)?,
            qkv: device.inputs(rows, 3 * width)?,
            hidden: device.inputs(rows, config.encoder_ffn_dim)?,
            seen: device.inputs(rows, width)?,
        })
    }
}

/// A frame and the two beside it, of every `stride`th frame.
fn neighbours(frames: usize, stride: usize) -> Window {
    let padding = Padding { rows: (0, 0), columns: (1, 1) };
    Window { size: (1, frames), kernel: (1, 3), stride: (1, stride), padding }
}
