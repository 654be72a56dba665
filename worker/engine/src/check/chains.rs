//! Each operation of a decoder's layer, recorded many times in a row: what it takes where a graph has it.

use std::sync::Arc;
use std::time::Instant;

use super::speed::{Shape, put, step};
use super::{Measure, ceilings::Ceilings};
use crate::Error;
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Epilogue, Gate, KvShape, Normed, Reach, Turn};
use crate::cuda::{Card, Gpu};
use crate::plan::BLOCK_TOKENS;

/// Operations of a recording.
const LINKS: usize = 48;
/// Weights that follow each other, so that none stays in the cache.
const WEIGHTS: usize = 4;
/// Times that a recording is replayed.
const REPLAYS: usize = 5;

/// What a layer's operations read and write.
struct Layer {
    qkv: Vec<<Cuda as Backend>::Weight>,
    out: Vec<<Cuda as Backend>::Weight>,
    gate_up: Vec<<Cuda as Backend>::Weight>,
    down: Vec<<Cuda as Backend>::Weight>,
    norm: <Cuda as Backend>::Buf,
    rope: <Cuda as Backend>::Buf,
    x: <Cuda as Backend>::Buf,
    normed: <Cuda as Backend>::Buf,
    rows: <Cuda as Backend>::Buf,
    attended: <Cuda as Backend>::Buf,
    gates: <Cuda as Backend>::Buf,
    inner: <Cuda as Backend>::Buf,
    kv: <Cuda as Backend>::Kv,
}

/// Times the operations of a step of `sequences`, each with `context` tokens before and `rows` of its own.
pub(super) fn measure(
    card: &Card,
    shape: &Shape,
    (sequences, context, rows): (usize, usize, usize),
    (ceilings, measures): (Ceilings, &mut Vec<Measure>),
) -> Result<(), Error> {
    let gpu = card.open()?;
    let mut cuda = Cuda::new(Arc::clone(&gpu), super::speed::LIMITS)?;
    let mut layer = Layer::new(&mut cuda, shape, (sequences, context, rows))?;
    cuda.step_begin(&step(sequences, context, rows))?;
    let what = format!("{}, {sequences} x {rows} at {context}", shape.name);
    let row = (sequences * rows) as f64;
    for (name, operation) in OPERATIONS {
        let seconds = seconds(&gpu, &mut cuda, &mut layer, operation)?;
        let weight = match name {
            "qkv" => layer.qkv.first(),
            "out" => layer.out.first(),
            "gate, up and glu" => layer.gate_up.first(),
            "down" => layer.down.first(),
            _ => None,
        };
        let part = weight.map(|weight| match ceilings.products {
            // Two operations a number, of two bytes.
            Some(products) if row > 256.0 => (weight.bytes() as f64 * row / seconds / products, "products"),
            _ => (weight.bytes_read(sequences * rows) as f64 / seconds / ceilings.copy, "copy"),
        });
        put(measures, &format!("{what}: {name}"), (seconds * 1e6, "us"), part);
    }
    Ok(())
}

type Operation = fn(&mut Cuda, &mut Layer, usize);

const OPERATIONS: [(&str, Operation); 5] = [
    ("qkv", |cuda, layer, link| {
        let x = Normed { x: &layer.x, weight: &layer.norm, epsilon: 1e-5 };
        cuda.norm_linear(x, &layer.qkv[link % WEIGHTS], &mut layer.normed, &mut layer.rows);
    }),
    ("rope and attention", |cuda, layer, _| {
        let turn = Turn { bias: None, norms: None, rope: &layer.rope };
        cuda.turn_and_attend(&mut layer.rows, &turn, (&mut layer.kv, 0, Reach::All), &mut layer.attended);
    }),
    ("out", |cuda, layer, link| {
        cuda.linear(&layer.attended, &layer.out[link % WEIGHTS], Epilogue::Add, &mut layer.x);
    }),
    ("gate, up and glu", |cuda, layer, link| {
        let x = Normed { x: &layer.x, weight: &layer.norm, epsilon: 1e-5 };
        let weight = (&layer.gate_up[link % WEIGHTS], Gate::Silu);
        cuda.norm_glu(x, weight, (&mut layer.normed, &mut layer.gates), &mut layer.inner);
    }),
    ("down", |cuda, layer, link| {
        cuda.linear(&layer.inner, &layer.down[link % WEIGHTS], Epilogue::Add, &mut layer.x);
    }),
];

impl Layer {
    fn new(cuda: &mut Cuda, shape: &Shape, (sequences, context, rows): (usize, usize, usize)) -> Result<Layer, Error> {
        let (width, inner) = (shape.width, shape.inner);
        let (queries, keys) = (shape.heads.0 * shape.head_width, shape.heads.1 * shape.head_width);
        let mut weights = |outputs: usize, inputs: usize| -> Result<Vec<_>, Error> {
            (0..WEIGHTS).map(|_| cuda.noise(outputs, inputs, shape.format)).collect()
        };
        let (qkv, out) = (weights(queries + 2 * keys, width)?, weights(width, queries)?);
        let (gate_up, down) = (weights(2 * inner, width)?, weights(width, inner)?);
        let all = sequences * rows;
        let blocks = sequences * (context + rows).div_ceil(BLOCK_TOKENS);
        let mut x = cuda.buffer(all, width)?;
        let noise = cuda.filled(all, width)?;
        cuda.take_all(&noise, &mut x);
        Ok(Layer {
            qkv,
            out,
            gate_up,
            down,
            norm: cuda.upload(&vec![1.0; width], width)?,
            rope: cuda.upload(&vec![0.5; (context + rows) * shape.head_width], shape.head_width)?,
            x,
            normed: cuda.inputs(all, width)?,
            rows: cuda.filled(all, queries + 2 * keys)?,
            attended: cuda.filled(all, queries)?,
            gates: cuda.inputs(all, 2 * inner)?,
            inner: cuda.filled(all, inner)?,
            kv: cuda.kv(KvShape { layers: 1, blocks, heads: shape.heads.1, width: shape.head_width })?,
        })
    }
}

/// Of one operation.
fn seconds(gpu: &Arc<dyn Gpu>, cuda: &mut Cuda, layer: &mut Layer, operation: Operation) -> Result<f64, Error> {
    operation(cuda, layer, 0);
    gpu.wait()?;
    gpu.record()?;
    (0..LINKS).for_each(|link| operation(cuda, layer, link));
    let graph = gpu.recorded()?;
    gpu.replay(graph)?;
    gpu.wait()?;
    let start = Instant::now();
    for _ in 0..REPLAYS {
        gpu.replay(graph)?;
    }
    gpu.wait()?;
    cuda.step_end()?;
    Ok(start.elapsed().as_secs_f64() / (REPLAYS * LINKS) as f64)
}
