//! Products, with norms before them and what follows; rows that are normed, gated and scaled.

use super::{Case, Held, ROUNDED, SUMS, case, empty, halves, matrix, put, read};
use crate::backend::dense::{Activation, Dense};
use crate::backend::{Backend, Epilogue, Gate, Matrix, Normed};
use crate::fixture::Noise;
use crate::quant::Format;

/// Outputs, inputs, rows.
const SHAPES: [(usize, usize, usize); 15] = [
    (16, 8, 1),
    (7, 1, 3),
    (33, 27, 5),
    (48, 576, 1),
    (130, 64, 2),
    (96, 1536, 4),
    (257, 128, 7),
    (64, 2048, 8),
    (72, 64, 9),
    (129, 96, 33),
    (64, 576, 64),
    (200, 72, 65),
    (136, 320, 130),
    (24, 16, 200),
    (40, 64, 300),
];

/// The same of quantised weights, those of whole super-blocks last.
const QUANTISED: [(usize, usize, usize); 9] = [
    (16, 32, 1),
    (23, 64, 3),
    (48, 576, 1),
    (130, 96, 2),
    (96, 1536, 4),
    (258, 128, 7),
    (64, 2048, 8),
    (34, 256, 5),
    (72, 512, 9),
];

pub(super) fn cases() -> Vec<Case> {
    let mut noise = Noise(31);
    let mut cases = plain(&mut noise);
    cases.extend(quantised(&mut noise));
    cases.extend([1, 3, 16, 17, 64, 100, 384, 576, 1000, 1100, 4096].map(|width| norms(&mut noise, width)));
    cases
}

fn plain(noise: &mut Noise) -> Vec<Case> {
    let mut cases = Vec::new();
    for (index, (outputs, inputs, rows)) in SHAPES.into_iter().enumerate() {
        for (from, to) in [(Held::Exact, Held::Exact), (Held::Inputs, Held::Inputs), (Held::Inputs, Held::Exact)] {
            let activation = [Activation::None, Activation::Gelu, Activation::QuickGelu, Activation::Relu6][index % 4];
            let product = Product::new(noise, (outputs, inputs, rows), (from, to));
            cases.push(product.clone().plain());
            cases.push(Affine { product: product.clone(), activation, epilogue: Epilogue::Store }.case());
            cases.push(Affine { product, activation: Activation::None, epilogue: Epilogue::Add }.case());
        }
        if inputs % 8 == 0 {
            let product = Product::new(noise, (outputs, inputs, rows), (Held::Exact, Held::Exact));
            cases.push(Gated { product }.case());
        }
    }
    cases
}

fn quantised(noise: &mut Noise) -> Vec<Case> {
    let simple = [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0].map(|format| vec![format]);
    let others = [vec![Format::Q4K], vec![Format::Q5K], vec![Format::Q6K], vec![Format::Q4_1, Format::Q8_0]];
    let mut cases = Vec::new();
    for formats in simple.into_iter().chain(others) {
        for shape in QUANTISED {
            if !formats.iter().all(|format| shape.1.is_multiple_of(format.block_len())) {
                continue;
            }
            for held in [(Held::Exact, Held::Exact), (Held::Inputs, Held::Exact)] {
                let product = Product::quantised(noise, &formats, shape, held);
                cases.push(
                    Affine { product: product.clone(), activation: Activation::Gelu, epilogue: Epilogue::Store }.case(),
                );
                cases.push(product.plain());
            }
            cases
                .push(Gated { product: Product::quantised(noise, &formats, shape, (Held::Exact, Held::Exact)) }.case());
        }
    }
    cases
}

/// `x * weight^T`.
#[derive(Clone)]
struct Product {
    shape: (usize, usize, usize),
    held: (Held, Held),
    x: Vec<f32>,
    /// Matrices side by side.
    weight: Vec<(Format, Vec<u8>)>,
    before: Vec<f32>,
    bias: Vec<f32>,
}

impl Product {
    fn new(noise: &mut Noise, shape: (usize, usize, usize), held: (Held, Held)) -> Product {
        let (outputs, inputs, rows) = shape;
        let (x, weight) = (halves(noise, rows * inputs), halves(noise, outputs * inputs));
        let weight = vec![(Format::F32, matrix(&weight))];
        Product { shape, held, x, weight, before: halves(noise, rows * outputs), bias: noise.numbers(outputs) }
    }

    /// Outputs shared among formats.
    fn quantised(noise: &mut Noise, formats: &[Format], shape: (usize, usize, usize), held: (Held, Held)) -> Product {
        let (outputs, inputs, _) = shape;
        let each = outputs / formats.len();
        let rows = |at: usize| if at == 0 { outputs - each * (formats.len() - 1) } else { each };
        let weight =
            formats.iter().enumerate().map(|(at, format)| (*format, noise.matrix(*format, rows(at), inputs))).collect();
        Product { weight, ..Product::new(noise, shape, held) }
    }

    fn name(&self, what: &str) -> String {
        let (outputs, inputs, rows) = self.shape;
        let formats: Vec<_> = self.weight.iter().map(|(format, _)| format.name()).collect();
        format!(
            "{what} {rows} x {inputs} x {outputs} of {} {:?} to {:?}",
            formats.join(" and "),
            self.held.0,
            self.held.1
        )
    }

    /// The error of a plain product.
    fn allowed(&self) -> f64 {
        let weights = match (self.weight[0].0, self.shape.2) {
            (Format::F32, _) => 0.0,
            // What is read as bf16 is rounded to it, and scales of super-blocks to half precision.
            (Format::Q6K, _) | (_, 9..) => ROUNDED,
            (Format::Q4K | Format::Q5K, _) => 1e-7,
            _ => 0.0,
        };
        self.held.1.allowed().max(weights)
    }

    /// The first rows of the matrix.
    fn weight<B: Backend>(&self, backend: &mut B, rows: usize) -> B::Weight {
        let (columns, mut left) = (self.shape.1, rows);
        let mut parts = Vec::new();
        for (format, data) in &self.weight {
            let part = Matrix { format: *format, columns, data };
            let taken = left.min(part.rows());
            left -= taken;
            parts.push(Matrix { data: &data[..taken * part.row_bytes()], ..part });
        }
        backend.pack(&parts).expect("a matrix")
    }

    fn plain(self) -> Case {
        case!(self.name("product"), self.allowed(), self)
    }

    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let (outputs, inputs, rows) = self.shape;
        let weight = self.weight(backend, outputs);
        let x = put(backend, &self.x, inputs, self.held.0);
        let mut out = empty(backend, rows, outputs, self.held.1);
        backend.linear(&x, &weight, Epilogue::Store, &mut out);
        read(backend, &out)
    }
}

/// A product with its bias and what follows, or added to what is there.
#[derive(Clone)]
struct Affine {
    product: Product,
    activation: Activation,
    epilogue: Epilogue,
}

impl Affine {
    fn case(self) -> Case {
        let name = format!("{} {:?} {:?}", self.product.name("affine"), self.activation, self.epilogue);
        // Activations are approximated to single precision's last bits.
        case!(name, self.product.allowed().max(1e-10), self)
    }

    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let Product { shape: (outputs, inputs, _), held, x, before, bias, .. } = &self.product;
        let weight = self.product.weight(backend, *outputs);
        let x = put(backend, x, *inputs, held.0);
        let bias = put(backend, bias, *outputs, Held::Exact);
        let mut out = put(backend, before, *outputs, held.1);
        backend.affine((&x, &weight), (&bias, self.activation), self.epilogue, &mut out);
        read(backend, &out)
    }
}

/// A normed product, and a normed and gated one.
#[derive(Clone)]
struct Gated {
    product: Product,
}

impl Gated {
    fn case(self) -> Case {
        // Norms are rounded before products of more than two rows; more of it is left of sums that cancel, as quantised
        // noise makes them.
        let allowed = if self.product.weight[0].0 == Format::F32 { 1e-5 } else { 4e-5 };
        case!(self.product.name("normed and gated"), allowed, self)
    }

    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let Product { shape: (outputs, inputs, rows), x, bias, .. } = &self.product;
        let half = outputs / 2;
        let weight = self.product.weight(backend, 2 * half);
        let x = put(backend, x, *inputs, Held::Exact);
        let scale: Vec<f32> = (0..*inputs).map(|at| 1.0 + 0.5 * bias[at % bias.len()]).collect();
        let norm = put(backend, &scale, *inputs, Held::Exact);
        let mut normed = empty(backend, *rows, *inputs, Held::Inputs);
        let mut gates = empty(backend, *rows, 2 * half, Held::Exact);
        let mut numbers = Vec::new();
        let row = || Normed { x: &x, weight: &norm, epsilon: 1e-5 };
        backend.norm_linear(row(), &weight, &mut normed, &mut gates);
        numbers.extend(read(backend, &gates));
        for gate in [Gate::Silu, Gate::Gelu] {
            let mut out = empty(backend, *rows, half, Held::Exact);
            backend.norm_glu(row(), (&weight, gate), (&mut normed, &mut gates), &mut out);
            numbers.extend(read(backend, &out));
        }
        numbers
    }
}

/// Rows that are normed both ways, biased, added, scaled, gated and averaged.
fn norms(noise: &mut Noise, width: usize) -> Case {
    let rows = 37;
    let numbers = noise.numbers(rows * width).iter().map(|x| x * 5.0 + 1.0).collect();
    let picked = (0..rows).map(|_| noise.bits() as u32 % rows as u32).collect();
    let (weight, bias) = (noise.numbers(width), noise.numbers(width));
    let norms = Norms { width, numbers, weight, bias, before: noise.numbers(rows * width), picked };
    case!(format!("rows of {width}"), 20.0 * SUMS, norms)
}

#[derive(Clone)]
struct Norms {
    width: usize,
    numbers: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    before: Vec<f32>,
    picked: Vec<u32>,
}

impl Norms {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let (width, rows) = (self.width, self.picked.len());
        let [x, weight, bias] = [&self.numbers, &self.weight, &self.bias].map(|n| put(backend, n, width, Held::Exact));
        let mut sums = put(backend, &self.before, width, Held::Exact);
        let mut normed = empty(backend, rows, width, Held::Exact);
        // The variance of a row of one number is none, so that the norm shows rounding errors only.
        backend.layer_norm(&x, (&weight, &bias), 1e-2, &mut normed);
        backend.bias(&bias, Activation::QuickGelu, &mut normed);
        backend.add(&normed, &mut sums);
        backend.add_rows(&x, &self.picked, &mut sums);
        backend.norm(&x, &weight, 1e-5, &mut normed);
        backend.add_norm(&normed, &weight, 1e-5, &mut sums);
        backend.scale(3.5, &mut sums);
        let mut means = empty(backend, 4, width, Held::Exact);
        backend.mean(&sums, &[0..1, 1..20, 20..20, 20..37], &mut means);
        let mut gated = empty(backend, rows, (width / 2).max(1), Held::Exact);
        let mut all = [read(backend, &sums), read(backend, &means)].concat();
        if width % 2 == 0 {
            for gate in [Gate::Silu, Gate::Gelu] {
                backend.glu(&x, gate, &mut gated);
                all.extend(read(backend, &gated));
            }
        }
        all
    }
}
