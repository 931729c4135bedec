//! Kernel sources to machine code, through the cache.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::cache::Cache;
use super::nvrtc::{Nvrtc, OPTIONS};
use super::table::{FILES, File, HEADERS};
use crate::{Error, Result};

/// Architectures that every kernel must compile for.
pub const ARCHES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

/// Architectures of GPUs from Ampere on, as [`super::Gpu::arch`] names them. An NVRTC may be too old for the last.
pub const KNOWN_ARCHES: [&str; 10] =
    ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90a", "sm_100a", "sm_103a", "sm_110a", "sm_120a", "sm_121a"];

/// What became of one kernel file.
#[derive(Debug, Clone)]
pub struct Built {
    /// Its name.
    pub file: &'static str,
    /// It was in the cache.
    pub cached: bool,
    /// Size of its machine code.
    pub bytes: usize,
    /// Time it took.
    pub seconds: f64,
}

/// Compiles what the cache lacks of the program's kernels for `arch` (`sm_90a`), on all cores. Needs NVRTC, no GPU.
///
/// # Errors
/// When NVRTC is missing, a file does not compile, or the cache cannot be written.
pub fn compile_all(arch: &str, progress: &(dyn Fn(&str) + Sync)) -> Result<Vec<Built>> {
    build(FILES, arch, &Cache::of_process()?, progress)
}

/// Compiles `source` for `arch` (`sm_90a`), without the cache. `file` is its name in messages.
///
/// # Errors
/// When NVRTC is missing, or the source does not compile.
pub fn compile(file: &str, source: &str, arch: &str) -> Result<Vec<u8>> {
    Nvrtc::get()?.compile(file, source, HEADERS, arch)
}

/// The machine code of a file: from the cache, or compiled and put there. True if it was there.
pub(super) fn image(file: &File, arch: &str, cache: &Cache) -> Result<(Vec<u8>, bool)> {
    let nvrtc = Nvrtc::get()?;
    let version = nvrtc.version();
    let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    let parts: Vec<&str> = [version.as_str(), file.source].into_iter().chain(OPTIONS).chain(headers).collect();
    let entry = cache.entry(file.name, arch, &parts);
    if let Some(code) = Cache::read(&entry)? {
        return Ok((code, true));
    }
    let code = nvrtc.compile(file.name, file.source, HEADERS, arch)?;
    Cache::write(&entry, &code)?;
    Ok((code, false))
}

fn build(files: &'static [File], arch: &str, cache: &Cache, progress: &(dyn Fn(&str) + Sync)) -> Result<Vec<Built>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Built>)>> = Mutex::default();
    let work = || {
        while let Some((index, file)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, files.get(i)?)))
        {
            let start = Instant::now();
            let built = image(file, arch, cache).map(|(code, cached)| Built {
                file: file.name,
                cached,
                bytes: code.len(),
                seconds: start.elapsed().as_secs_f64(),
            });
            if let Ok(Built { file, cached: false, seconds, .. }) = &built {
                progress(&format!("compiled {file} for {arch} in {seconds:.1} s"));
            }
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, built));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(files.len());
    std::thread::scope(|scope| -> std::io::Result<()> {
        for _ in 0..threads {
            // The compiler is written for the stack of a main thread, four times that of a Rust thread.
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(scope, work)?;
        }
        Ok(())
    })
    .map_err(|e| Error::Device { name: "host".to_owned(), why: format!("no thread to compile on: {e}") })?;
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, built)| built).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses what the kernels use: no toolkit header, packed arguments, architecture macros, dynamic shared memory.
    const SOURCE: &str = r#"
extern "C" __global__ void probe_scale(float* y, const float* x, unsigned n, float s) {
    extern __shared__ float tile[];
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) y[i] = s * tile[threadIdx.x];
}
extern "C" __global__ void probe_arch(int* out) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    *out = 901;
#else
    *out = __CUDA_ARCH__;
#endif
}
"#;

    static PROBE: [File; 1] = [File { name: "probe.cu", source: SOURCE, kernels: &["probe_scale", "probe_arch"] }];

    /// Names of the functions with code in a cubin: an ELF file with one section `.text.NAME` each.
    fn kernels_in(cubin: &[u8]) -> Vec<String> {
        let number = |at: usize, bytes: usize| {
            cubin[at..at + bytes].iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte))
        };
        assert_eq!(&cubin[..5], b"\x7fELF\x02");
        let (table, entry, count, names) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2), number(0x3e, 2));
        let names = number(table + names * entry + 0x18, 8);
        let mut found: Vec<String> = (0..count)
            .filter_map(|section| {
                let name = &cubin[names + number(table + section * entry, 4)..];
                let end = name.iter().position(|byte| *byte == 0).unwrap();
                str::from_utf8(&name[..end]).unwrap().strip_prefix(".text.").map(str::to_owned)
            })
            .collect();
        found.sort();
        found
    }

    fn sorted(kernels: &[&str]) -> Vec<String> {
        let mut names: Vec<_> = kernels.iter().map(|k| (*k).to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn kernels_compile_for_every_architecture_and_are_those_of_the_table() {
        let dir = tempfile::tempdir().unwrap();
        // What did not change since the last run of the tests is not compiled again.
        let caches = [(&PROBE[..], Cache::at(dir.path())), (FILES, Cache::of_process().unwrap())];
        for (arch, (files, cache)) in ARCHES.iter().flat_map(|arch| caches.iter().map(move |c| (arch, c))) {
            build(files, arch, cache, &|_| ()).unwrap_or_else(|e| panic!("{e}"));
            for file in *files {
                let (code, cached) = image(file, arch, cache).unwrap();
                assert!(cached);
                assert_eq!(kernels_in(&code), sorted(file.kernels), "{} for {arch}", file.name);
            }
        }
        let mut all: Vec<_> = FILES.iter().flat_map(|file| file.kernels).collect();
        all.sort();
        assert!(all.is_sorted_by(|a, b| a < b), "a kernel's name is used twice");
    }

    #[test]
    fn the_cache_saves_the_compiler_and_a_damaged_entry_is_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let built = |expected: bool| {
            let built = build(&PROBE, "sm_90a", &cache, &|_| ()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(built[0].cached, expected);
            image(&PROBE[0], "sm_90a", &cache).unwrap().0
        };
        let code = built(false);
        assert_eq!(built(true), code);
        let entry = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&entry).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&entry, bytes).unwrap();
        assert_eq!(built(false), code);
    }

    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_with_the_compilers_log() {
        let error = compile("bad.cu", "extern \"C\" __global__ void f() { undeclared = 1; }", "sm_80");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("bad.cu") && error.contains("sm_80") && error.contains("\"undeclared\""), "{error}");
    }

    #[test]
    fn an_architecture_that_the_compiler_does_not_know_is_refused_with_those_it_knows() {
        let error = compile("probe.cu", SOURCE, "sm_42").unwrap_err().to_string();
        assert!(error.contains("sm_42") && error.contains("sm_80"), "{error}");
    }
}
