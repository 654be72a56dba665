//! The text decoder: tokens attend to what was said before them and to their window of sound.
//!
//! Lanes hold the keys and values of what is being written, slots those of the windows; both are rows of one buffer a
//! layer. Several lanes may look at one slot.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::config::{Config, SOURCE_POSITIONS};
use super::layers::{Bias, EPSILON, FeedForward, Source};
use crate::Error;
use crate::backend::Epilogue;
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Span, View};
use crate::model::affine::{self, Affine, Loader, Norm};
use crate::plan::TokenId;
use crate::tensors::Tensors;

/// The decoder of a model.
pub(super) struct Decoder<D: Dense> {
    embedding: D::Weight,
    positions: D::Buf, // (context, width)
    layers: Vec<Layer<D>>,
    norm: Norm<D>,
    sizes: Sizes,
    /// (layer, head), by layer.
    aligned: Vec<(usize, usize)>,
    room: Option<Room<D>>,
}

#[derive(Clone, Copy)]
struct Sizes {
    width: usize,
    inner: usize,
    vocabulary: usize,
    context: usize,
    layers: usize,
}

struct Layer<D: Dense> {
    heads: Heads,
    norm: Norm<D>,
    qkv: Affine<D>,
    out: Affine<D>,
    sound_norm: Norm<D>,
    sound_q: Affine<D>,
    sound_kv: Affine<D>,
    sound_out: Affine<D>,
    feed_forward: FeedForward<D>,
}

/// Tokens that follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage<'a> {
    /// Where their keys and values go.
    pub(super) lane: usize,
    /// Which window they tell.
    pub(super) slot: usize,
    /// How many tokens the lane holds before them.
    pub(super) position: usize,
    /// At least one.
    pub(super) tokens: &'a [TokenId],
}

/// What is wanted of passages.
pub(super) enum Want<'a> {
    /// Logits after some rows, counted over all passages: (rows, vocabulary), replaced.
    Logits(&'a [usize], &'a mut Vec<f32>),
    /// For each passage, how much its tokens look at each of its window's first positions, by aligned head: appended
    /// as (heads, tokens, positions).
    Attention(&'a mut [Observed]),
}

/// How tokens look at their window.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// Of the window, from its beginning.
    pub(super) positions: usize,
    /// (heads, tokens, positions).
    pub(super) weights: Vec<f32>,
}

/// Memory for some lanes and windows.
struct Room<D: Dense> {
    lanes: usize,
    slots: usize,
    x: D::Buf,          // (rows, width)
    normed: D::Buf,     // (rows, width)
    qkv: D::Buf,        // (rows, 3 * width)
    queries: D::Buf,    // (rows, width)
    seen: D::Buf,       // (rows, width)
    hidden: D::Buf,     // (rows, feed-forward)
    picked: D::Buf,     // (2 * lanes, width)
    logits: D::Buf,     // (2 * lanes, vocabulary)
    said: Vec<D::Buf>,  // a layer: (lanes * context, keys | values)
    sound: Vec<D::Buf>, // a layer: (slots * 1500, keys | values)
    sound_kv: D::Buf,   // (1500 a window at once, keys | values)
}

impl<D: Dense> Decoder<D> {
    pub(super) fn new(tensors: &Tensors, config: &Config, device: &mut D) -> Result<Decoder<D>, Error> {
        let width = config.d_model;
        let mut source = Source { loader: Loader { tensors, backend: device, rows: affine::Rows::Few }, width };
        let layer = |index| Layer::new(&mut source, &format!("model.decoder.layers.{index}"), config);
        let layers = (0..config.decoder_layers).map(layer).collect::<Result<_, Error>>()?;
        let embedding = tensors.matrix("model.decoder.embed_tokens.weight", config.vocab_size, width)?;
        let mut aligned = config.alignment_heads.clone();
        aligned.sort_unstable();
        Ok(Decoder {
            layers,
            embedding: source.loader.backend.pack(&[embedding])?,
            positions: source.positions("model.decoder.embed_positions.weight", config.max_target_positions)?,
            norm: source.norm("model.decoder.layer_norm")?,
            sizes: Sizes {
                width,
                inner: config.decoder_ffn_dim,
                vocabulary: config.vocab_size,
                context: config.max_target_positions,
                layers: config.decoder_layers,
            },
            aligned,
            room: None,
        })
    }

    /// Makes room for `lanes` lanes over `slots` windows. What it held is lost when it has to grow.
    pub(super) fn reserve(&mut self, device: &mut D, lanes: usize, slots: usize) -> Result<(), Error> {
        let (mut most_lanes, mut most_slots) = (lanes, slots);
        if let Some(room) = &self.room {
            if room.lanes >= lanes && room.slots >= slots {
                return Ok(());
            }
            (most_lanes, most_slots) = (lanes.max(room.lanes), slots.max(room.slots));
        }
        self.room = None;
        self.room = Some(Room::new(self.sizes, device, most_lanes, most_slots)?);
        Ok(())
    }

    /// Keeps windows that the tower computed, (windows, 1500, width), in their slots.
    pub(super) fn remember(&mut self, device: &mut D, sound: &D::Buf, slots: Range<usize>, progress: &AtomicU64) {
        let room = self.room.as_mut().expect("reserved before windows are computed");
        let rows: Vec<u32> =
            (slots.start * SOURCE_POSITIONS..slots.end * SOURCE_POSITIONS).map(|row| row as u32).collect();
        for (layer, kept) in self.layers.iter().zip(&mut room.sound) {
            layer.sound_kv.replace(device, sound, Activation::None, &mut room.sound_kv);
            device.scatter(View { rows: &room.sound_kv, column: 0 }, &rows, kept);
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Computes passages of different lanes.
    pub(super) fn read(&mut self, device: &mut D, passages: &[Passage<'_>], mut want: Want<'_>, progress: &AtomicU64) {
        let room = self.room.as_mut().expect("reserved before passages are read");
        let rows = Rows::of(passages, self.sizes.context);
        device.gather(&self.embedding, &rows.tokens, &mut room.x);
        device.add_rows(&self.positions, &rows.positions, &mut room.x);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.listen_to_text(device, room, index, &rows);
            layer.ask(device, room);
            let keys = View { rows: &room.sound[index], column: 0 };
            let values = View { rows: &room.sound[index], column: self.sizes.width };
            let inputs = Attended { queries: View { rows: &room.queries, column: 0 }, keys, values };
            if let Want::Attention(observed) = &mut want {
                let heads = self.aligned.iter().filter(|(layer, _)| *layer == index);
                for head in heads.map(|(_, head)| (layer.heads, *head)) {
                    for (seen, span) in observed.iter_mut().zip(&rows.sound) {
                        let keys = span.keys.start..span.keys.start + seen.positions;
                        let span = Span { queries: span.queries.clone(), keys };
                        device.attention_weights(inputs, &span, head, &mut seen.weights);
                    }
                }
            }
            device.attend(inputs, &rows.sound, layer.heads, Mask::Full, &mut room.seen);
            layer.sound_out.add(device, &room.seen, &mut room.x);
            layer.feed_forward.add(device, &mut room.x, &mut room.normed, &mut room.hidden);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        if let Want::Logits(after, logits) = want {
            self.norm.apply(device, &room.x, EPSILON, &mut room.normed);
            let picked: Vec<_> = after.iter().map(|row| *row..row + 1).collect();
            device.mean(&room.normed, &picked, &mut room.picked);
            device.linear(&room.picked, &self.embedding, Epilogue::Store, &mut room.logits);
            device.download(&room.logits, logits);
        }
    }
}

impl<D: Dense> Layer<D> {
    fn new(source: &mut Source<'_, D>, name: &str, config: &Config) -> Result<Layer<D>, Error> {
        let width = config.d_model;
        let (q, k, v) = (("q_proj", Bias::Stored), ("k_proj", Bias::Zero), ("v_proj", Bias::Stored));
        Ok(Layer {
            heads: config.decoder_heads(),
            norm: source.norm(&format!("{name}.self_attn_layer_norm"))?,
            qkv: source.fused(&format!("{name}.self_attn"), &[q, k, v])?,
            out: source.linear(&format!("{name}.self_attn.out_proj"), width, width)?,
            sound_norm: source.norm(&format!("{name}.encoder_attn_layer_norm"))?,
            sound_q: source.fused(&format!("{name}.encoder_attn"), &[q])?,
            sound_kv: source.many().fused(&format!("{name}.encoder_attn"), &[k, v])?,
            sound_out: source.linear(&format!("{name}.encoder_attn.out_proj"), width, width)?,
            feed_forward: source.feed_forward(name, config.decoder_ffn_dim)?,
        })
    }

    /// Attention over the lanes, these rows included.
    fn listen_to_text(&self, device: &mut D, room: &mut Room<D>, index: usize, rows: &Rows) {
        let width = self.heads.count * self.heads.width;
        self.norm.apply(device, &room.x, EPSILON, &mut room.normed);
        self.qkv.replace(device, &room.normed, Activation::None, &mut room.qkv);
        device.scatter(View { rows: &room.qkv, column: width }, &rows.places, &mut room.said[index]);
        let inputs = Attended {
            queries: View { rows: &room.qkv, column: 0 },
            keys: View { rows: &room.said[index], column: 0 },
            values: View { rows: &room.said[index], column: width },
        };
        device.attend(inputs, &rows.said, self.heads, Mask::Causal, &mut room.seen);
        self.out.add(device, &room.seen, &mut room.x);
    }

    /// Queries for the windows.
    fn ask(&self, device: &mut D, room: &mut Room<D>) {
        self.sound_norm.apply(device, &room.x, EPSILON, &mut room.normed);
        self.sound_q.replace(device, &room.normed, Activation::None, &mut room.queries);
    }
}

/// Passages as rows.
struct Rows {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// Rows of the lanes' buffers.
    places: Vec<u32>,
    said: Vec<Span>,
    sound: Vec<Span>,
}

impl Rows {
    fn of(passages: &[Passage<'_>], context: usize) -> Rows {
        let (tokens, positions, places) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows = Rows { tokens, positions, places, said: Vec::new(), sound: Vec::new() };
        for passage in passages {
            let queries = rows.tokens.len()..rows.tokens.len() + passage.tokens.len();
            let (first, end) = (passage.position, passage.position + passage.tokens.len());
            let (lane, slot) = (passage.lane * context, passage.slot * SOURCE_POSITIONS);
            rows.tokens.extend(passage.tokens);
            rows.positions.extend((first..end).map(|position| position as u32));
            rows.places.extend((first..end).map(|position| (lane + position) as u32));
            rows.said.push(Span { queries: queries.clone(), keys: lane..lane + end });
            rows.sound.push(Span { queries, keys: slot..slot + SOURCE_POSITIONS });
        }
        rows
    }
}

impl<D: Dense> Room<D> {
    fn new(sizes: Sizes, device: &D, lanes: usize, slots: usize) -> Result<Room<D>, Error> {
        let Sizes { width, inner, vocabulary, context, layers } = sizes;
        let windows = super::tower::WINDOWS_AT_ONCE * device.appetite();
        let rows = lanes * context;
        let kept = |rows: usize| -> Result<Vec<D::Buf>, Error> {
            (0..layers).map(|_| device.inputs(rows, 2 * width)).collect()
        };
        Ok(Room {
            lanes,
            slots,
            said: kept(rows)?,
            sound: kept(slots * SOURCE_POSITIONS)?,
            x: device.buffer(rows, width)?,
            normed: device.inputs(rows, width)?,
            qkv: device.inputs(rows, 3 * width)?,
            queries: device.inputs(rows, width)?,
            seen: device.inputs(rows, width)?,
            hidden: device.inputs(rows, inner)?,
            picked: device.inputs(2 * lanes, width)?,
            logits: device.buffer(2 * lanes, vocabulary)?,
            sound_kv: device.inputs(windows * SOURCE_POSITIONS, 2 * width)?,
        })
    }
}
