//! As much of Python's pickles as a state dict needs. Nothing is ever run: what a pickle asks to call is looked up by name
//! in a list of three kinds, and refused by name where it is not there.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

/// Longest name of a storage: each tensor has a copy of its storage's.
const KEY_MAX: usize = 64;
/// Most bytes of one pickle: an index of tensors takes some hundred bytes a tensor.
const BYTES_MAX: usize = 4 << 20;
/// Most values that wait, and most that are remembered.
const STACK_MAX: usize = 1 << 16;
const MEMO_MAX: usize = 1 << 18;
/// Most lists, tuples, dicts, texts, tensors together.
const OBJECTS_MAX: usize = 1 << 19;
/// Longest text: names of tensors and of their storages.
const TEXT_BYTES_MAX: usize = 4096;
/// Most sizes of one tensor.
pub(crate) const RANK_MAX: usize = 8;

/// Type of a storage's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// IEEE single.
    Float,
    /// IEEE half.
    Half,
    /// 64 bits.
    Long,
    /// 32 bits.
    Int,
}

impl Kind {
    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Kind::Long => 8,
            Kind::Float | Kind::Int => 4,
            Kind::Half => 2,
        }
    }
}

/// What a name of a pickle means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    /// `collections.OrderedDict`
    Dict,
    /// `torch._utils._rebuild_tensor_v2`
    Tensor,
    /// `torch.FloatStorage` and the like.
    Storage(Kind),
}

impl Global {
    fn named(module: &str, name: &str) -> Result<Global> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::Dict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor,
            ("torch", "FloatStorage") => Global::Storage(Kind::Float),
            ("torch", "HalfStorage") => Global::Storage(Kind::Half),
            ("torch", "LongStorage") => Global::Storage(Kind::Long),
            ("torch", "IntStorage") => Global::Storage(Kind::Int),
            _ => bail!("its pickle asks for {module}.{name}, which no state dict needs: refused"),
        })
    }
}

/// A value; compound ones lie in the heap, so that none is ever dropped in depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// One of [`Global`].
    Global(Global),
    /// Number of an [`Object`].
    Object(usize),
}

/// A compound value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// A text.
    Text(String),
    /// Fixed.
    Tuple(Vec<Value>),
    /// Growing.
    List(Vec<Value>),
    /// In the order of insertion; a key may be there twice.
    Dict(Vec<(Value, Value)>),
    /// Numbers that follow the pickles.
    Storage(Storage),
    /// A view of a storage.
    Tensor(View),
}

/// Numbers that follow the pickles, by their key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Their name.
    pub(crate) key: String,
    /// Their type.
    pub(crate) kind: Kind,
    /// How many.
    pub(crate) numbers: usize,
}

/// A tensor as a view of a storage, everything counted in numbers. Not yet held against the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Which.
    pub(crate) storage: Storage,
    /// Of the first number.
    pub(crate) offset: usize,
    /// Sizes, at most [`RANK_MAX`].
    pub(crate) shape: Vec<usize>,
    /// Steps, as many.
    pub(crate) strides: Vec<usize>,
}

/// What a pickle left: its value and what that refers to.
#[derive(Debug)]
pub(crate) struct Pickled {
    /// The value.
    pub(crate) value: Value,
    /// What [`Value::Object`] counts in.
    pub(crate) objects: Vec<Object>,
    /// Bytes that it took.
    pub(crate) bytes: usize,
}

impl Pickled {
    /// What a value refers to, if anything.
    pub(crate) fn object(&self, value: Value) -> Option<&Object> {
        match value {
            Value::Object(number) => self.objects.get(number),
            _ => None,
        }
    }

    /// A text.
    pub(crate) fn text(&self, value: Value) -> Option<&str> {
        match self.object(value) {
            Some(Object::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// Reads the pickle at the beginning of `bytes`.
pub(crate) fn read(bytes: &[u8]) -> Result<Pickled> {
    let mut machine = Machine {
        input: &bytes[..bytes.len().min(BYTES_MAX)],
        at: 0,
        stack: vec![],
        marks: vec![],
        memo: HashMap::new(),
        objects: vec![],
    };
    loop {
        let code = machine.byte()?;
        if code == b'.' {
            let value = machine.pop()?;
            return Ok(Pickled { value, objects: machine.objects, bytes: machine.at });
        }
        let at = machine.at - 1;
        machine.step(code).with_context(|| format!("a pickle is damaged at byte {at}"))?;
        ensure!(machine.stack.len() <= STACK_MAX, "a pickle piles up more than {STACK_MAX} values");
        ensure!(machine.marks.len() <= STACK_MAX, "a pickle piles up more than {STACK_MAX} marks");
        ensure!(machine.memo.len() <= MEMO_MAX, "a pickle remembers more than {MEMO_MAX} values");
        ensure!(machine.objects.len() <= OBJECTS_MAX, "a pickle makes more than {OBJECTS_MAX} values");
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    objects: Vec<Object>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            0x80 => {
                let version = self.byte()?;
                ensure!(version == 2, "it is of protocol {version}, not 2");
            }
            b'(' => self.marks.push(self.stack.len()),
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => self.number::<1>(|bytes| i128::from(bytes[0]))?,
            b'M' => self.number(|bytes| i128::from(u16::from_le_bytes(bytes)))?,
            b'J' => self.number(|bytes| i128::from(i32::from_le_bytes(bytes)))?,
            0x8a => self.long()?,
            b'X' => self.text()?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Global(Global::named(module, name)?));
            }
            b')' => self.make(Object::Tuple(vec![])),
            b']' => self.make(Object::List(vec![])),
            b'}' => self.make(Object::Dict(vec![])),
            b't' => {
                let values = self.since_mark()?;
                self.make(Object::Tuple(values));
            }
            0x85..=0x87 => {
                let values = self.last(usize::from(code - 0x84))?;
                self.make(Object::Tuple(values));
            }
            b'q' => {
                let [number] = self.take()?;
                self.remember(u32::from(number))?;
            }
            b'r' => {
                let number = u32::from_le_bytes(self.take()?);
                self.remember(number)?;
            }
            b'h' => {
                let [number] = self.take()?;
                self.recall(u32::from(number))?;
            }
            b'j' => {
                let number = u32::from_le_bytes(self.take()?);
                self.recall(number)?;
            }
            b's' => {
                let pair = self.last(2)?;
                self.set_items(&pair)?;
            }
            b'u' => {
                let pairs = self.since_mark()?;
                self.set_items(&pairs)?;
            }
            b'a' => {
                let value = self.last(1)?;
                self.append(&value)?;
            }
            b'e' => {
                let values = self.since_mark()?;
                self.append(&values)?;
            }
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            // Attributes of a dict, which say nothing of its tensors.
            b'b' => drop(self.pop()?),
            _ => bail!("it holds the instruction {code:#04x}, which no state dict needs"),
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        let [byte] = self.take()?;
        Ok(byte)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.slice(N)?;
        Ok(bytes.try_into().expect("as long as asked for"))
    }

    fn slice(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.input.len());
        let Some(end) = end else { bail!("a pickle ends early, or is longer than {BYTES_MAX} bytes") };
        let slice = &self.input[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.input[self.at..];
        let end = rest.iter().take(TEXT_BYTES_MAX).position(|byte| *byte == b'\n');
        let end = end.context("a name has no end")?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).context("a name is no text")
    }

    fn number<const N: usize>(&mut self, value: impl FnOnce([u8; N]) -> i128) -> Result<()> {
        let bytes = self.take()?;
        self.stack.push(Value::Int(value(bytes)));
        Ok(())
    }

    fn long(&mut self) -> Result<()> {
        let length = usize::from(self.byte()?);
        ensure!(length <= 16, "a number has {length} bytes, 16 at most are read");
        let bytes = self.slice(length)?;
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [sign; 16];
        whole[..length].copy_from_slice(bytes);
        self.stack.push(Value::Int(i128::from_le_bytes(whole)));
        Ok(())
    }

    fn text(&mut self) -> Result<()> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        ensure!(length <= TEXT_BYTES_MAX, "a text has {length} bytes, {TEXT_BYTES_MAX} at most are read");
        let text = std::str::from_utf8(self.slice(length)?).context("a text is no UTF-8")?;
        self.make(Object::Text(text.to_owned()));
        Ok(())
    }

    fn make(&mut self, object: Object) {
        self.stack.push(Value::Object(self.objects.len()));
        self.objects.push(object);
    }

    /// Values since the last mark are out of reach, as for Python.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value> {
        ensure!(self.stack.len() > self.floor(), "a value is missing");
        self.stack.pop().context("a value is missing")
    }

    fn last(&mut self, count: usize) -> Result<Vec<Value>> {
        let from = self.stack.len().checked_sub(count).filter(|from| *from >= self.floor());
        Ok(self.stack.split_off(from.context("values are missing")?))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().context("a mark is missing")?;
        ensure!(mark <= self.stack.len(), "a mark is void");
        Ok(self.stack.split_off(mark))
    }

    fn top(&self) -> Result<Value> {
        ensure!(self.stack.len() > self.floor(), "a value is missing");
        self.stack.last().copied().context("a value is missing")
    }

    fn remember(&mut self, number: u32) -> Result<()> {
        self.memo.insert(number, self.top()?);
        Ok(())
    }

    fn recall(&mut self, number: u32) -> Result<()> {
        let value = self.memo.get(&number);
        self.stack.push(*value.with_context(|| format!("value {number} was never remembered"))?);
        Ok(())
    }

    fn set_items(&mut self, pairs: &[Value]) -> Result<()> {
        let target = self.top()?;
        let (pairs, []) = pairs.as_chunks::<2>() else { bail!("a key has no value") };
        match self.object_mut(target) {
            Some(Object::Dict(items)) => items.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => bail!("what gets items is no dict"),
        }
        Ok(())
    }

    fn append(&mut self, values: &[Value]) -> Result<()> {
        let target = self.top()?;
        match self.object_mut(target) {
            Some(Object::List(items)) => items.extend_from_slice(values),
            _ => bail!("what is appended to is no list"),
        }
        Ok(())
    }

    fn object_mut(&mut self, value: Value) -> Option<&mut Object> {
        match value {
            Value::Object(number) => self.objects.get_mut(number),
            _ => None,
        }
    }

    fn tuple(&self, value: Value) -> Result<&[Value]> {
        match value {
            Value::Object(number) => match &self.objects[number] {
                Object::Tuple(values) => Ok(values),
                other => bail!("a tuple is expected, not {}", kind(other)),
            },
            _ => bail!("a tuple is expected"),
        }
    }

    fn string(&self, value: Value) -> Result<&str> {
        match value {
            Value::Object(number) => match &self.objects[number] {
                Object::Text(text) => Ok(text),
                other => bail!("a text is expected, not {}", kind(other)),
            },
            _ => bail!("a text is expected"),
        }
    }

    /// `('storage', type, key, place, count, None)`
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let &[what, Value::Global(Global::Storage(kind)), key, _place, Value::Int(numbers), Value::None] =
            self.tuple(id)?
        else {
            bail!("what it refers to is no storage")
        };
        ensure!(self.string(what)? == "storage", "what it refers to is no storage");
        ensure!(self.string(key)?.len() <= KEY_MAX, "the name of a storage is longer than {KEY_MAX} bytes");
        let storage = Storage { key: self.string(key)?.to_owned(), kind, numbers: size(Value::Int(numbers))? };
        self.make(Object::Storage(storage));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let arguments = self.tuple(arguments)?;
        let made = match callee {
            Value::Global(Global::Dict) if arguments.is_empty() => Object::Dict(vec![]),
            Value::Global(Global::Tensor) => Object::Tensor(self.view(arguments)?),
            _ => bail!("it calls {callee:?} with {} values, which no state dict needs", arguments.len()),
        };
        self.make(made);
        Ok(())
    }

    /// Storage, offset, sizes, steps, whether a gradient is wanted, hooks.
    fn view(&self, arguments: &[Value]) -> Result<View> {
        let &[Value::Object(storage), offset, shape, strides, _, _] = arguments else {
            bail!("a tensor is made of {} values, not 6", arguments.len())
        };
        let Object::Storage(storage) = &self.objects[storage] else { bail!("a tensor has no storage") };
        let sizes = |values: &[Value]| -> Result<Vec<usize>> {
            ensure!(values.len() <= RANK_MAX, "a tensor has {} sizes, {RANK_MAX} at most are read", values.len());
            values.iter().map(|value| size(*value)).collect()
        };
        let (shape, strides) = (sizes(self.tuple(shape)?)?, sizes(self.tuple(strides)?)?);
        ensure!(shape.len() == strides.len(), "a tensor has {} sizes and {} steps", shape.len(), strides.len());
        Ok(View { storage: storage.clone(), offset: size(offset)?, shape, strides })
    }
}

fn kind(object: &Object) -> &'static str {
    match object {
        Object::Text(_) => "a text",
        Object::Tuple(_) => "a tuple",
        Object::List(_) => "a list",
        Object::Dict(_) => "a dict",
        Object::Storage(_) => "a storage",
        Object::Tensor(_) => "a tensor",
    }
}

/// A count; nothing is counted beyond 2^40.
fn size(value: Value) -> Result<usize> {
    match value {
        Value::Int(number) if (0..=1 << 40).contains(&number) => Ok(usize::try_from(number)?),
        other => bail!("{other:?} is no size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Result<Pickled> {
        read(bytes)
    }

    #[test]
    fn numbers_texts_and_compounds_are_read() {
        let found = value(b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x07X\x01\x00\x00\x00bM\x00\x01u.rest").unwrap();
        let Some(Object::Dict(items)) = found.object(found.value) else { panic!("{found:?}") };
        let items: Vec<_> = items.iter().map(|(key, value)| (found.text(*key).unwrap(), *value)).collect();
        assert_eq!(items, [("a", Value::Int(7)), ("b", Value::Int(256))]);
        assert_eq!(found.bytes, 27);
        assert_eq!(value(b"\x8a\x02\xff\xff.").unwrap().value, Value::Int(-1));
        assert_eq!(value(b"J\xfe\xff\xff\xff.").unwrap().value, Value::Int(-2));
    }

    #[test]
    fn what_a_pickle_wants_to_run_is_refused_by_name() {
        for (module, name) in [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("collections", "deque")] {
            let named = format!("c{module}\n{name}\n");
            let pickle = [b"\x80\x02", named.as_bytes(), b"(X\x04\x00\x00\x00truetR."].concat();
            let error = format!("{:#}", value(&pickle).unwrap_err());
            assert!(error.contains(&format!("{module}.{name}")), "{error}");
        }
        let error = format!("{:#}", value(b"ctorch\nFloatStorage\n)R.").unwrap_err());
        assert!(error.contains("calls"), "{error}");
    }

    #[test]
    fn what_is_too_long_or_too_much_is_refused() {
        let refused = |bytes: &[u8], words: &str| {
            let error = format!("{:#}", value(bytes).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        refused(b"X\xff\xff\xff\xff", "4294967295 bytes");
        refused(&b"N".repeat(STACK_MAX + 1), "65536 values");
        refused(&b"(".repeat(STACK_MAX + 1), "65536 marks");
        refused(&b"]0".repeat(OBJECTS_MAX), "instruction 0x30");
        refused(&b"]b".repeat(OBJECTS_MAX + 1), "524288 values");
        refused(b"r\xff\xff\xff\xff.", "missing");
        refused(b"j\x00\x00\x00\x00.", "never remembered");
        refused(&[b"c".as_slice(), &b"x".repeat(1 << 20)].concat(), "no end");
        refused(b"K\x01(.", "missing");
        refused(b"", "ends early");
    }

    /// A tuple in a tuple in a tuple: nothing here goes by recursion.
    #[test]
    fn depth_costs_nothing() {
        let deep = [b")".as_slice(), &b"\x85".repeat(OBJECTS_MAX - 1), b"."].concat();
        assert_eq!(value(&deep).unwrap().objects.len(), OBJECTS_MAX);
    }
}
