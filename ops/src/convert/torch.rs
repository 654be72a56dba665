//! PyTorch's layout of before 1.6: four pickles and a list of keys, then the numbers of each key, one after the other.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::pickle::{self, Kind, Object, Pickled, Storage, Value, View};

/// First value of such a file.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// Second.
const PROTOCOL: i128 = 1001;
/// Most tensors of a state dict.
const TENSORS_MAX: usize = 1 << 16;
/// Shared storages may be written out more than once, but not without end.
const GROWTH_MAX: usize = 2;

/// A tensor, its numbers in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Array {
    /// Its name.
    pub(crate) name: String,
    /// Type of its numbers.
    pub(crate) kind: Kind,
    /// Its sizes.
    pub(crate) shape: Vec<usize>,
    /// Little-endian, the last size the fastest.
    pub(crate) data: Vec<u8>,
}

/// Reads every tensor of a state dict, in its order.
pub(crate) fn read(file: &[u8]) -> Result<Vec<Array>> {
    let mut at = 0;
    let mut next = |what: &str| -> Result<Pickled> {
        let read = pickle::read(&file[at..]).with_context(|| format!("its {what} cannot be read"))?;
        at += read.bytes;
        Ok(read)
    };
    ensure!(next("magic number")?.value == Value::Int(MAGIC), "it is not of PyTorch's old layout");
    ensure!(next("protocol")?.value == Value::Int(PROTOCOL), "its protocol is not {PROTOCOL}");
    ensure!(is_little_endian(&next("origin")?), "its numbers are not little-endian");
    let (state, keys) = (next("state dict")?, next("list of storages")?);
    let views = views(&state)?;
    let storages = storages(&keys, &views, &file[at..])?;
    let mut room = file.len().saturating_mul(GROWTH_MAX);
    let mut arrays = Vec::with_capacity(views.len());
    for (name, view) in views {
        let numbers = storages.get(view.storage.key.as_str()).expect("looked at above");
        let array = gather(name, view, numbers, room).with_context(|| format!("tensor {name}"))?;
        room -= array.data.len();
        arrays.push(array);
    }
    Ok(arrays)
}

fn is_little_endian(origin: &Pickled) -> bool {
    let Some(Object::Dict(items)) = origin.object(origin.value) else { return false };
    items.iter().any(|(key, value)| origin.text(*key) == Some("little_endian") && *value == Value::Bool(true))
}

fn views(state: &Pickled) -> Result<Vec<(&str, &View)>> {
    let Some(Object::Dict(items)) = state.object(state.value) else { bail!("it holds no state dict") };
    ensure!(items.len() <= TENSORS_MAX, "it has {} tensors, {TENSORS_MAX} at most are read", items.len());
    let view = |(key, value): &(Value, Value)| match (state.text(*key), state.object(*value)) {
        (Some(name), Some(Object::Tensor(view))) => Ok((name, view)),
        (Some(name), _) => bail!("{name} of its state dict is no tensor"),
        (None, _) => bail!("a key of its state dict is no name"),
    };
    items.iter().map(view).collect()
}

/// The numbers of each storage, which follow each other in the order of their keys, each behind its count.
fn storages<'a>(keys: &Pickled, views: &[(&str, &View)], data: &'a [u8]) -> Result<HashMap<String, &'a [u8]>> {
    let mut wanted: HashMap<&str, &Storage> = HashMap::new();
    for (name, view) in views {
        let storage = wanted.entry(&view.storage.key).or_insert(&view.storage);
        ensure!(**storage == view.storage, "tensor {name} sees its storage as another tensor does not");
    }
    let Some(Object::List(keys_in_order)) = keys.object(keys.value) else { bail!("it has no list of storages") };
    let mut found = HashMap::new();
    let mut rest = data;
    for key in keys_in_order {
        let key = keys.text(*key).context("a key of its storages is no text")?;
        let storage = wanted.get(key).with_context(|| format!("storage {key} belongs to no tensor"))?;
        let (count, after) = rest.split_first_chunk::<8>().context("it ends within its storages")?;
        let bytes = storage.numbers.checked_mul(storage.kind.bytes());
        ensure!(usize::try_from(u64::from_le_bytes(*count)) == Ok(storage.numbers), "storage {key} has another length");
        let (numbers, after) =
            bytes.and_then(|bytes| after.split_at_checked(bytes)).context("it ends within its storages")?;
        ensure!(found.insert(key.to_owned(), numbers).is_none(), "storage {key} is there twice");
        rest = after;
    }
    ensure!(rest.is_empty(), "{} bytes follow its last storage", rest.len());
    match wanted.keys().find(|key| !found.contains_key(**key)) {
        Some(key) => bail!("storage {key} is not there"),
        None => Ok(found),
    }
}

/// Puts the numbers of a view in order.
fn gather(name: &str, view: &View, storage: &[u8], bytes_max: usize) -> Result<Array> {
    let View { shape, strides, offset, storage: Storage { kind, numbers, .. } } = view;
    let count = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).context("it has no end")?;
    ensure!(count <= *numbers, "it has {count} numbers, its storage {numbers}");
    let width = kind.bytes();
    ensure!(count * width <= bytes_max, "all tensors together are larger than the file");
    let mut data = Vec::with_capacity(count * width);
    if count > 0 {
        let mut steps = shape.iter().zip(strides).map(|(size, stride)| (size - 1).checked_mul(*stride));
        let last = steps.try_fold(*offset, |last, step| last.checked_add(step?));
        ensure!(last.is_some_and(|last| last < *numbers), "it reaches beyond its storage");
        let mut index = vec![0; shape.len()];
        for _ in 0..count {
            let at: usize = offset + index.iter().zip(strides).map(|(index, stride)| index * stride).sum::<usize>();
            data.extend_from_slice(&storage[at * width..(at + 1) * width]);
            advance(&mut index, shape);
        }
    }
    Ok(Array { name: name.to_owned(), kind: *kind, shape: shape.clone(), data })
}

fn advance(index: &mut [usize], shape: &[usize]) {
    for (place, size) in index.iter_mut().zip(shape).rev() {
        *place += 1;
        if *place < *size {
            return;
        }
        *place = 0;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    fn int(number: usize) -> Vec<u8> {
        [b"J".as_slice(), &(number as u32).to_le_bytes()].concat()
    }

    fn tuple(numbers: &[usize]) -> Vec<u8> {
        [b"(".as_slice(), &numbers.iter().flat_map(|number| int(*number)).collect::<Vec<_>>(), b"t"].concat()
    }

    /// A tensor of a file of a test: name, shape, strides, its storage's numbers.
    pub(crate) type Told<'a> = (&'a str, &'a [usize], &'a [usize], &'a [f32]);

    /// A whole file, as PyTorch wrote them.
    pub(crate) fn file(tensors: &[Told<'_>]) -> Vec<u8> {
        let mut state = b"\x80\x02ccollections\nOrderedDict\nq\x00)R(".to_vec();
        let mut keys = b"\x80\x02](".to_vec();
        let mut data = Vec::new();
        for (name, shape, strides, numbers) in tensors {
            let key = format!("k{name}");
            state.extend([text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(), text("storage")].concat());
            state.extend([b"ctorch\nFloatStorage\n".to_vec(), text(&key), text("cpu"), int(numbers.len())].concat());
            state.extend([b"NtQ".to_vec(), int(0), tuple(shape), tuple(strides)].concat());
            state.extend(b"\x89h\x00)RtR");
            keys.extend(text(&key));
            data.extend((numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|number| data.extend(number.to_le_bytes()));
        }
        let head = [
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}(".to_vec(),
            text("little_endian"),
            b"\x88u.".to_vec(),
        ];
        [head.concat(), state, b"u.".to_vec(), keys, b"e.".to_vec(), data].concat()
    }

    pub(crate) const SMALL: [Told<'static>; 3] = [
        ("plain", &[2, 2], &[2, 1], &[1.0, 2.0, 3.0, 4.0]),
        ("turned", &[2, 3], &[1, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ("scalar", &[], &[], &[7.0]),
    ];

    fn numbers(array: &Array) -> Vec<f32> {
        array.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn tensors_are_read_in_order_and_laid_out_plainly() {
        let arrays = read(&file(&SMALL)).unwrap();
        assert_eq!(arrays.iter().map(|array| array.name.as_str()).collect::<Vec<_>>(), ["plain", "turned", "scalar"]);
        assert_eq!(numbers(&arrays[0]), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(numbers(&arrays[1]), [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert_eq!((numbers(&arrays[2]), arrays[2].shape.len()), (vec![7.0], 0));
    }

    #[test]
    fn a_view_that_lies_is_refused_before_anything_is_taken() {
        let refused = |told: Told<'_>, words: &str| {
            let error = format!("{:#}", read(&file(&[told])).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        refused(("a", &[2], &[2], &[1.0, 2.0]), "beyond");
        refused(("a", &[1 << 30, 1 << 30, 1 << 30], &[0, 0, 0], &[1.0]), "no end");
        refused(("a", &[1 << 30], &[0], &[1.0]), "its storage 1");
        refused(("a", &[1; 9], &[1; 9], &[1.0]), "9 sizes");
        refused(("a", &[1], &[1, 1], &[1.0]), "steps");
        let shared = ("a", [4usize].as_slice(), [1usize].as_slice(), [0.0f32; 4].as_slice());
        assert!(read(&file(&[shared, shared])).is_err(), "one key, two storages");
    }

    #[test]
    fn a_file_that_is_cut_or_longer_is_refused() {
        let whole = file(&SMALL);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end}");
        }
        assert!(format!("{:#}", read(&[whole, vec![0]].concat()).unwrap_err()).contains("1 bytes follow"));
    }

    /// Whatever stands in a file: an answer, no panic, and no more memory than twice the file.
    #[test]
    fn no_change_of_bytes_does_harm() {
        let whole = file(&SMALL);
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        for _ in 0..20_000 {
            let mut changed = whole.clone();
            for _ in 0..=random(3) {
                let at = random(changed.len());
                match random(4) {
                    0 => changed[at] = random(256) as u8,
                    1 => changed[at] ^= 1 << random(8),
                    2 => drop(changed.remove(at)),
                    _ => changed.insert(at, b"(.RQNtu\x85q\xff"[random(10)]),
                }
            }
            if let Ok(arrays) = read(&changed) {
                assert!(arrays.iter().map(|array| array.data.len()).sum::<usize>() <= 2 * changed.len());
            }
        }
    }
}
