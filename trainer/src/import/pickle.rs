//! Reads pickles as data, without running anything.
//!
//! A pickle is a program for a stack machine that may call any function of Python. This machine knows only how to build
//! values: a call is noted as a [`Value::Call`] with the function's name, never made. What PyTorch stores beside the
//! weights (an argparse namespace, paths, the optimiser) becomes such notes, which nobody looks at.
//!
//! candle's reader of these files panics on some malformed ones, copies values at each reference (a file of some hundred
//! bytes can fill the memory) and leaves out without a word what it does not take for a tensor, so it is not used here.
//!
//! Values lie in one list and refer to each other by index: no nesting is too deep, a loop does no harm, and memory is
//! proportional to the length of the pickle. The operations are those of Python's `pickletools`, protocols 2 to 5.

use std::collections::HashMap;

/// Index of a value.
pub(crate) type Id = u32;

/// A value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `None` or a set: nothing that anyone needs.
    Other,
    Bytes(Vec<u8>),
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// In the order of insertion.
    Dict(Vec<(Id, Id)>),
    /// A class or function of Python, as `module.name`.
    Global(String),
    /// What calling a global would give.
    Call {
        function: Id,
        arguments: Id,
        /// What the object was given as its state.
        state: Option<Id>,
    },
    /// A reference to something outside of the pickle; in PyTorch's files a storage.
    Persistent(Id),
}

/// A pickle that has been read.
#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads `bytes`. The error says what is wrong and at which byte.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut machine =
            Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            let from = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { values: machine.values, root }),
                Err(what) => return Err(format!("{what} at byte {from} of the pickle")),
            }
        }
    }

    /// The whole.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The value at `id`; [`Value::Other`] if there is none.
    pub fn get(&self, id: Id) -> &Value {
        self.values.get(id as usize).unwrap_or(&Value::Other)
    }

    /// The last value that dictionary `id` has for the key `key`.
    pub fn entry(&self, id: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(id) else { return None };
        entries.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value)
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        if let Value::Text(text) = self.get(id) { Some(text) } else { None }
    }

    pub fn int(&self, id: Id) -> Option<usize> {
        if let Value::Int(v) = self.get(id) { usize::try_from(*v).ok() } else { None }
    }

    /// The elements of a tuple or list, none of anything else.
    pub fn elements(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Value::Tuple(ids) | Value::List(ids) => ids,
            _ => &[],
        }
    }

    /// The name of the function of a call, and its arguments.
    pub fn call(&self, id: Id) -> Option<(&str, &[Id])> {
        let Value::Call { function, arguments, .. } = self.get(id) else { return None };
        let Value::Global(name) = self.get(*function) else { return None };
        Some((name, self.elements(*arguments)))
    }

    /// The state that an object was given.
    pub fn state(&self, id: Id) -> Option<Id> {
        if let Value::Call { state, .. } = self.get(id) { *state } else { None }
    }

    /// What the value is, in a few words.
    pub fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Value::Other => "nothing of use".into(),
            Value::Bytes(_) => "bytes".into(),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) => "a number".into(),
            Value::Text(_) => "a text".into(),
            Value::Tuple(_) | Value::List(_) => "a list".into(),
            Value::Dict(_) => "a dictionary".into(),
            Value::Global(name) => format!("the Python object {name}"),
            Value::Call { .. } => match self.call(id) {
                Some((name, _)) => format!("a call of {name} (which was not made)"),
                None => "a call (which was not made)".into(),
            },
            Value::Persistent(_) => "a storage".into(),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack at which marks stand.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|end| *end <= self.bytes.len()).ok_or("ends early,")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// An unsigned number of `n` bytes, little-endian.
    fn number(&mut self, n: usize) -> Result<u64, String> {
        Ok(self.take(n)?.iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte)))
    }

    /// The bytes of a string whose length stands before it in `n` bytes.
    fn counted(&mut self, n: usize) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.number(n)?).map_err(|_| "is too long,")?;
        self.take(length)
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or("ends early,")?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        let id = Id::try_from(self.values.len()).map_err(|_| "has too many values,")?;
        self.values.push(value);
        self.stack.push(id);
        Ok(())
    }

    fn text(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.push(Value::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn pop(&mut self) -> Result<Id, String> {
        // What lies under the last mark is not to be had.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_tuple(&mut self, n: usize) -> Result<(), String> {
        let mut ids = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        ids.reverse();
        self.push(Value::Tuple(ids))
    }

    /// Adds to the list on top; to anything else, of which nothing is wanted, nothing.
    fn append(&mut self, new: Vec<Id>) -> Result<(), String> {
        let top = self.top()? as usize;
        if let Value::List(ids) = &mut self.values[top] {
            ids.extend(new);
        }
        Ok(())
    }

    fn set(&mut self, new: &[Id]) -> Result<(), String> {
        if !new.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        let top = self.top()? as usize;
        if let Value::Dict(entries) = &mut self.values[top] {
            entries.extend(new.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let function = self.pop()?;
        let name = match &self.values[function as usize] {
            Value::Global(name) => name.as_str(),
            _ => "",
        };
        let bare = matches!(&self.values[arguments as usize], Value::Tuple(ids) if ids.is_empty());
        match name {
            "collections.OrderedDict" if bare => self.push(Value::Dict(Vec::new())),
            _ => self.push(Value::Call { function, arguments, state: None }),
        }
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        let (key, top) = (u32::try_from(key).map_err(|_| "the memo is too large")?, self.top()?);
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let known = u32::try_from(key).ok().and_then(|key| self.memo.get(&key));
        let id = *known.ok_or_else(|| format!("memo {key} is empty"))?;
        self.stack.push(id);
        Ok(())
    }

    /// Does one operation; the root if it was the last.
    fn step(&mut self) -> Result<Option<Id>, String> {
        let operation = self.take(1)?[0];
        match operation {
            b'.' => return self.pop().map(Some),
            // Protocol and frame.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_marked()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::Other)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.unsigned(1)?,
            b'M' => self.unsigned(2)?,
            b'J' => {
                let v = self.number(4)? as u32 as i32;
                self.push(Value::Int(v.into()))?;
            }
            0x8a => {
                let bytes = self.counted(1)?;
                self.long(bytes)?;
            }
            0x8b => {
                let bytes = self.counted(4)?;
                self.long(bytes)?;
            }
            b'G' => {
                let v = f64::from_bits(self.number(8)?.swap_bytes());
                self.push(Value::Float(v))?;
            }
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let bytes = self.counted(match operation {
                    0x8c | b'U' => 1,
                    0x8d => 8,
                    _ => 4,
                })?;
                self.text(bytes)?;
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = match operation {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                };
                let bytes = self.counted(width)?.to_vec();
                self.push(Value::Bytes(bytes))?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => self.pop_tuple(usize::from(operation - 0x84))?,
            b't' => {
                let ids = self.pop_marked()?;
                self.push(Value::Tuple(ids))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let ids = self.pop_marked()?;
                self.push(Value::List(ids))?;
            }
            b'a' => {
                let id = self.pop()?;
                self.append(vec![id])?;
            }
            b'e' => {
                let ids = self.pop_marked()?;
                self.append(ids)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let ids = self.pop_marked()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set(&ids)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let ids = self.pop_marked()?;
                self.set(&ids)?;
            }
            // Sets.
            0x8f => self.push(Value::Other)?,
            0x90 => drop(self.pop_marked()?),
            0x91 => {
                self.pop_marked()?;
                self.push(Value::Other)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Value::Global(format!("{module}.{name}")))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let part = |id: Id| match &self.values[id as usize] {
                    Value::Text(text) => Ok(text.clone()),
                    _ => Err("a global has no name"),
                };
                let global = format!("{}.{}", part(module)?, part(name)?);
                self.push(Value::Global(global))?;
            }
            b'R' | 0x81 => self.call()?,
            0x92 => {
                // With keyword arguments, which are of no interest.
                self.pop()?;
                self.call()?;
            }
            // A state for the object on top.
            b'b' => {
                let given = self.pop()?;
                let top = self.top()? as usize;
                if let Value::Call { state, .. } = &mut self.values[top] {
                    *state = Some(given);
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            b'q' => {
                let key = self.number(1)?;
                self.remember(key)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => {
                let key = self.number(1)?;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number(4)?;
                self.recall(key)?;
            }
            other => return Err(format!("operation {other:#04x} is unknown")),
        }
        Ok(None)
    }

    fn unsigned(&mut self, bytes: usize) -> Result<(), String> {
        let v = self.number(bytes)?;
        self.push(Value::Int(v as i64))
    }

    /// A signed number of any width; what does not fit 64 bits is of no use.
    fn long(&mut self, bytes: &[u8]) -> Result<(), String> {
        if bytes.len() > 8 {
            return self.push(Value::Other);
        }
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pickle.dumps({"a": [1, -2, 70000, 2**40], "b": (True, None, 1.5), "c": collections.OrderedDict(x="é")}, N)`
    const PROTOCOL_2: &[u8] = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffJp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01eX\x01\x00\x00\x00bq\x03\x88NG?\xf8\x00\x00\x00\x00\x00\x00\x87q\x04X\x01\x00\x00\x00cq\x05ccollections\nOrderedDict\nq\x06)Rq\x07X\x01\x00\x00\x00xq\x08X\x02\x00\x00\x00\xc3\xa9q\tsu.";
    const PROTOCOL_4: &[u8] = b"\x80\x04\x95a\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffJp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01e\x8c\x01b\x94\x88NG?\xf8\x00\x00\x00\x00\x00\x00\x87\x94\x8c\x01c\x94\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\x8c\x01x\x94\x8c\x02\xc3\xa9\x94su.";

    #[test]
    fn python_values_are_read() {
        for bytes in [PROTOCOL_2, PROTOCOL_4] {
            let pickle = Pickle::read(bytes).unwrap();
            let entry = |key| pickle.entry(pickle.root(), key).unwrap();
            let a: Vec<_> = pickle.elements(entry("a")).iter().map(|id| pickle.get(*id).clone()).collect();
            assert_eq!(a, [1, -2, 70000, 1 << 40].map(Value::Int));
            let b: Vec<_> = pickle.elements(entry("b")).iter().map(|id| pickle.get(*id).clone()).collect();
            assert_eq!(b, [Value::Bool(true), Value::Other, Value::Float(1.5)]);
            assert_eq!(pickle.text(pickle.entry(entry("c"), "x").unwrap()), Some("é"));
        }
    }

    #[test]
    fn calls_are_noted_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let command = format!(
            "cposix\nsystem\n(U{}touch {}tR.",
            char::from(6 + path.to_str().unwrap().len() as u8),
            path.display()
        );
        let pickle = Pickle::read(command.as_bytes()).unwrap();
        let (name, arguments) = pickle.call(pickle.root()).unwrap();
        assert_eq!((name, arguments.len()), ("posix.system", 1));
        assert!(pickle.describe(pickle.root()).contains("posix.system (which was not made)"));
        assert!(!path.exists());
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_survived() {
        for bytes in [PROTOCOL_2, PROTOCOL_4] {
            for cut in 0..bytes.len() {
                Pickle::read(&bytes[..cut]).unwrap_err();
            }
            for at in 0..bytes.len() {
                for value in 0..=255 {
                    let mut changed = bytes.to_vec();
                    changed[at] = value;
                    let _ = Pickle::read(&changed);
                }
            }
        }
    }

    #[test]
    fn deep_and_doubling_pickles_stay_small() {
        // A tuple in a tuple in a tuple, a million times; and each of 200 tuples holds the one before twice.
        let mut deep = b")".to_vec();
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        assert!(Pickle::read(&deep).is_ok());
        let mut doubling = b")".to_vec();
        (0..200).for_each(|_| doubling.extend(b"2\x86"));
        doubling.push(b'.');
        assert_eq!(Pickle::read(&doubling).unwrap().values.len(), 201);
    }
}
