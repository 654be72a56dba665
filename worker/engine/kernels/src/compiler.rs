//! NVRTC, which compiles kernels with or without a GPU; and the texts that it is given.
#![allow(unsafe_code)] // reason: a C interface; what it is handed lives as long as the call

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::os::unix::Library;

use crate::recipe::{Files, OPTIONS, Target};
use crate::{Error, library};

/// How hard code is packed: it is done once.
const PACKING: u8 = 9;

/// What NVRTC itself loads by name.
const COMPANION: &str = "libnvrtc-builtins";

type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Fill = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The functions of NVRTC that are called.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log: (Size, Fill),
    machine: (Size, Fill),
    portable: (Size, Fill),
}

impl Functions {
    fn of(library: &Library) -> Result<Functions, Error> {
        // SAFETY: every symbol is taken as the type that nvrtc.h declares for its name.
        unsafe {
            Ok(Functions {
                version: symbol(library, "nvrtcVersion")?,
                create: symbol(library, "nvrtcCreateProgram")?,
                destroy: symbol(library, "nvrtcDestroyProgram")?,
                compile: symbol(library, "nvrtcCompileProgram")?,
                log: (symbol(library, "nvrtcGetProgramLogSize")?, symbol(library, "nvrtcGetProgramLog")?),
                machine: (symbol(library, "nvrtcGetCUBINSize")?, symbol(library, "nvrtcGetCUBIN")?),
                portable: (symbol(library, "nvrtcGetPTXSize")?, symbol(library, "nvrtcGetPTX")?),
            })
        }
    }
}

/// # Safety
/// `F` must be the type of that function.
unsafe fn symbol<F: Copy>(library: &Library, name: &str) -> Result<F, Error> {
    // SAFETY: the caller vouches for the type.
    let found = unsafe { library.get::<F>(name) };
    Ok(*found.map_err(|_| Error(format!("NVRTC lacks {name}: it is older than CUDA 11.1")))?)
}

/// NVRTC, loaded.
pub struct Compiler {
    functions: Functions,
    version: (u32, u32),
}

/// What a source was compiled to.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code, or PTX with a zero at its end.
    pub code: Vec<u8>,
    /// What the compiler said.
    pub log: String,
}

impl Compiler {
    /// As the loader finds it, else in one of the folders, else where toolkits put it.
    ///
    /// # Errors
    /// [`Error`] when it is nowhere.
    pub fn find(folders: &[PathBuf]) -> Result<Compiler, Error> {
        match library::COMPILER.known() {
            Some(library) => Compiler::of(library),
            None => Compiler::within(&library::folders(folders)),
        }
    }

    /// That in `folder`, and no other.
    ///
    /// # Errors
    /// [`Error`] when it is not there.
    pub fn open(folder: &Path) -> Result<Compiler, Error> {
        Compiler::within(&[folder.to_path_buf()])
    }

    fn within(folders: &[PathBuf]) -> Result<Compiler, Error> {
        let absent = || Error("NVRTC (libnvrtc.so.13) is not here".into());
        let (library, folder) = library::COMPILER.within(folders).ok_or_else(absent)?;
        library::companions(COMPANION, &folder);
        Compiler::of(library)
    }

    fn of(library: Library) -> Result<Compiler, Error> {
        let functions = Functions::of(&library)?;
        library::keep(library);
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both places outlive the call.
        let status = unsafe { (functions.version)(&mut major, &mut minor) };
        told("nvrtcVersion", status)?;
        Ok(Compiler { functions, version: (major.unsigned_abs(), minor.unsigned_abs()) })
    }

    /// Its version, which is that of a CUDA toolkit.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Compiles a text that includes nothing; `further` are options besides [`OPTIONS`].
    ///
    /// # Errors
    /// [`Error`] with the compiler's words.
    pub fn compile(&self, name: &str, text: &str, target: Target, further: &[&str]) -> Result<Compiled, Error> {
        let source = Source::create(self, name, text)?;
        let options = [format!("--gpu-architecture={target}")].into_iter();
        let options = options.chain(OPTIONS.iter().chain(further).map(|&option| option.to_owned()));
        let options: Vec<CString> = options.map(|option| c_string(&option)).collect::<Result<_, _>>()?;
        let status = source.compile(&options);
        let log = String::from_utf8_lossy(&source.read(self.functions.log)?).trim_end_matches('\0').to_owned();
        if status != 0 {
            return Err(Error(format!("{name} does not compile for {target}:\n{}", log.trim())));
        }
        let code = source.read(match target {
            Target::Machine(_) => self.functions.machine,
            Target::Portable(_) => self.functions.portable,
        })?;
        Ok(Compiled { code, log })
    }
}

/// A program of NVRTC, with the texts that it points to.
struct Source<'a> {
    compiler: &'a Compiler,
    program: Program,
    _texts: [CString; 2],
}

impl<'a> Source<'a> {
    fn create(compiler: &'a Compiler, name: &str, text: &str) -> Result<Source<'a>, Error> {
        let texts = [c_string(text)?, c_string(name)?];
        let mut program = ptr::null_mut();
        // SAFETY: both texts end with a zero and live in the value that is returned; there are no headers.
        let status = unsafe {
            let [text, name] = [texts[0].as_ptr(), texts[1].as_ptr()];
            (compiler.functions.create)(&mut program, text, name, 0, ptr::null(), ptr::null())
        };
        told("nvrtcCreateProgram", status)?;
        Ok(Source { compiler, program, _texts: texts })
    }

    /// The status.
    fn compile(&self, options: &[CString]) -> c_int {
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(options.len()).expect("a handful");
        // SAFETY: the program is alive, the options outlive the call.
        unsafe { (self.compiler.functions.compile)(self.program, count, options.as_ptr()) }
    }

    fn read(&self, (size, fill): (Size, Fill)) -> Result<Vec<u8>, Error> {
        let mut bytes = 0;
        // SAFETY: the program is alive, the place outlives the call.
        told("the size of NVRTC's output", unsafe { size(self.program, &mut bytes) })?;
        let mut out = vec![0_u8; bytes];
        // SAFETY: as many bytes as it asked for are there.
        told("NVRTC's output", unsafe { fill(self.program, out.as_mut_ptr().cast()) })?;
        Ok(out)
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once. A failure leaves nothing to do.
        unsafe { (self.compiler.functions.destroy)(&mut self.program) };
    }
}

fn told(what: &str, status: c_int) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(Error(format!("{what}: NVRTC's error {status}"))) }
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error("a zero within a source of kernels".into()))
}

/// Code as it is kept in a build: a quarter of its size.
#[must_use]
pub fn packed(code: &[u8]) -> Vec<u8> {
    miniz_oxide::deflate::compress_to_vec(code, PACKING)
}

/// What was packed.
///
/// # Panics
/// When it was not: the build packs, so it is whole.
#[must_use]
pub fn unpacked(packed: &[u8]) -> Vec<u8> {
    miniz_oxide::inflate::decompress_to_vec(packed).expect("packed by the build")
}

/// A source with its headers in it, each once. Lines keep their files and numbers in messages. What is not among the files
/// is left to the preprocessor: it stands behind a condition, or fails there.
///
/// # Errors
/// [`Error`] when there is no such source.
pub fn whole(name: &str, files: &Files) -> Result<String, Error> {
    let mut out = String::new();
    append(name, files, &mut Vec::new(), &mut out)?;
    Ok(out)
}

fn append<'a>(name: &str, files: &'a Files, seen: &mut Vec<&'a str>, out: &mut String) -> Result<(), Error> {
    let Some((name, text)) = files.get_key_value(name) else {
        return Err(Error(format!("no source of kernels is called {name}")));
    };
    seen.push(name);
    let begin = |out: &mut String, number: usize| {
        writeln!(out, "#line {number} {name:?}").expect("a string takes all");
    };
    begin(out, 1);
    for (number, line) in text.lines().enumerate() {
        match included(line) {
            Some(header) if seen.contains(&header) => out.push('\n'),
            Some(header) if files.contains_key(header) => {
                append(header, files, seen, out)?;
                begin(out, number + 2);
            }
            _ if line.trim() == "#pragma once" => out.push('\n'),
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    Ok(())
}

/// What a line includes.
fn included(line: &str) -> Option<&str> {
    line.trim().strip_prefix("#include")?.trim().strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::made_of;

    fn files(texts: &[(&str, &str)]) -> Files {
        texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn headers_come_once_and_lines_keep_their_numbers() {
        let files = files(&[
            ("a.cu", "#include \"b.cuh\"\n#include \"c.cuh\"\nint a;\n"),
            ("b.cuh", "#pragma once\n#ifdef SHIM\n#include \"shim/shim.h\"\n#endif\n#include \"c.cuh\"\nint b;\n"),
            ("c.cuh", "int c;\n"),
        ]);
        let wanted = "#line 1 \"a.cu\"\n#line 1 \"b.cuh\"\n\n#ifdef SHIM\n#include \"shim/shim.h\"\n#endif\n\
                      #line 1 \"c.cuh\"\nint c;\n#line 6 \"b.cuh\"\nint b;\n#line 2 \"a.cu\"\n\nint a;\n";
        assert_eq!(whole("a.cu", &files).unwrap(), wanted);
        assert!(whole("d.cu", &files).is_err());
    }

    #[test]
    fn what_kernels_are_made_of_names_targets_options_and_texts() {
        let one = made_of(&files(&[("a.cu", "x")]));
        assert!(one.contains("sm_90") && one.contains(OPTIONS[0]) && one.contains("== a.cu\nx"), "{one}");
        assert_ne!(one, made_of(&files(&[("a.cu", "y")])));
        assert_eq!(Target::Machine((12, 0)).file("rows"), "rows.sm_120.cubin");
        assert_eq!(Target::Portable((8, 0)).file("rows"), "rows.ptx");
    }

    #[test]
    fn a_library_that_is_not_there_is_a_sentence() {
        let error = Compiler::open(Path::new("/nowhere")).err().unwrap();
        assert!(error.to_string().contains("NVRTC"), "{error}");
    }
}
