//! Finding NVIDIA's libraries.
//!
//! `cudarc` binds the driver. Its other bindings are not used: it opens a library by name alone and panics when that
//! fails, and a build for CUDA 12 does not know the names of CUDA 13, nor would one for CUDA 13 run on a driver of
//! CUDA 12. The few functions of cuBLASLt and NVRTC are the same in both, so they are loaded here, by path.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libloading::Library;

use crate::{Error, Result};

/// Directories, separated like `PATH`, that are searched before all others.
const LISTED: &str = "ARLE_CUDA_LIBRARIES";

/// CUDA versions whose libraries can be used, newest first.
pub(super) const MAJORS: [u32; 2] = [13, 12];

/// A library that comes in one file name per CUDA version.
pub(super) struct Wanted {
    /// `libnvrtc.so`; the CUDA version is appended.
    pub(super) stem: &'static str,
    /// Its package on PyPI; `-cu12` is appended for CUDA 12.
    pub(super) package: &'static str,
    /// Start of the names of files beside it that it opens by name: the loader does not look beside it.
    pub(super) companions: Option<&'static str>,
}

impl Wanted {
    fn file(&self, major: u32) -> String {
        format!("{}.{major}", self.stem)
    }

    fn install(&self, major: u32) -> String {
        let suffix = if major == 12 { "-cu12" } else { "" };
        format!("`pip install {}{suffix}` carries it, and so does the CUDA toolkit {major}", self.package)
    }

    /// Opens the first that the directories hold among those of CUDA `driver` and before.
    ///
    /// Without a driver (kernels are compiled for another machine) every version will do.
    pub(super) fn open(&self, search: &Search, driver: Option<(u32, u32)>) -> Result<(Library, String)> {
        let usable = |major: &&u32| driver.is_none_or(|(newest, _)| **major <= newest);
        let files: Vec<String> = MAJORS.iter().filter(usable).map(|&major| self.file(major)).collect();
        let mut broken = None;
        for place in search.places(&files) {
            // SAFETY: the initializers of NVIDIA's libraries may run at any time, on any thread.
            match unsafe { Library::new(&place) } {
                Ok(library) => {
                    self.preload_companions(&place);
                    return Ok((library, place.display().to_string()));
                }
                // A bare name that the loader does not know is the usual case; a file that is there should load.
                Err(e) if place.is_absolute() => broken = Some(format!("does not load: {}", words(&e))),
                Err(_) => {}
            }
        }
        if let Some((found, minor)) = driver
            && let Some(newer) = MAJORS.iter().find(|major| **major > found)
            && search.places(&[self.file(*newer)]).any(|p| p.is_absolute())
        {
            return Err(Error::DriverTooOld {
                found: format!("{found}.{minor}"),
                needs: format!("the only {} on this machine is of CUDA {newer}", self.stem),
                remedy: format!(
                    "Install the library of CUDA {found} (`pip install {}-cu{found}`), or a driver for CUDA {newer}",
                    self.package
                ),
            });
        }
        let newest = driver.map_or(MAJORS[0], |(major, _)| major.min(MAJORS[0]));
        Err(Error::MissingLibrary {
            library: files.join(" or "),
            why: broken.unwrap_or_else(|| ABSENT.to_owned()),
            searched: search.describe(),
            remedy: format!("{}; or name its directory in {LISTED}", self.install(newest)),
        })
    }
}

impl Wanted {
    /// Loads the companions of a library that was found by its path; what is loaded is found by name.
    fn preload_companions(&self, library: &Path) {
        let (Some(prefix), Some(dir)) = (self.companions, library.parent().filter(|dir| dir.is_absolute())) else {
            return;
        };
        for companion in children(dir, prefix) {
            // SAFETY: as for the library itself. One that does not load is reported by the library that needs it.
            if let Ok(companion) = unsafe { Library::new(companion) } {
                std::mem::forget(companion);
            }
        }
    }
}

/// Where to look.
#[derive(Default)]
pub(super) struct Search {
    /// Named by the user.
    pub(super) listed: Vec<PathBuf>,
    /// Toolkits: directories with `lib64`.
    pub(super) toolkits: Vec<PathBuf>,
    /// `site-packages` of the active environments.
    pub(super) packages: Vec<PathBuf>,
    /// The program that knows more of them; it is asked last.
    pub(super) python: Option<PathBuf>,
}

impl Search {
    /// As the environment of this process says.
    pub(super) fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let listed = set(LISTED).map(|dirs| std::env::split_paths(&dirs).collect()).unwrap_or_default();
        let mut toolkits: Vec<PathBuf> =
            ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"].iter().filter_map(|name| set(name).map(PathBuf::from)).collect();
        let mut installed: Vec<PathBuf> = children(Path::new("/usr/local"), "cuda").collect();
        installed.sort_by(|a, b| b.cmp(a));
        toolkits.extend(installed);
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| set(name).map(PathBuf::from));
        let packages = environments.flat_map(|root| site_packages(&root)).collect();
        Self { listed, toolkits, packages, python: Some("python3".into()) }
    }

    /// Every place that may hold one of `files`, best first: bare names stand for the loader's own path, paths exist.
    fn places<'a>(&'a self, files: &'a [String]) -> impl Iterator<Item = PathBuf> + 'a {
        let within = move |dir: PathBuf| files.iter().map(move |file| dir.join(file)).filter(|path| path.is_file());
        let listed = self.listed.iter().cloned().flat_map(within);
        let loader = files.iter().map(PathBuf::from);
        let toolkits = self.toolkits.iter().flat_map(|root| toolkit_directories(root)).flat_map(within);
        let packages = self.packages.iter().flat_map(|site| package_directories(site)).flat_map(within);
        // Starting Python takes 30 ms, so only when all else failed.
        let python = std::iter::once_with(|| self.python.as_deref().map(python_path).unwrap_or_default())
            .flatten()
            .flat_map(|site| package_directories(&site))
            .flat_map(within);
        listed.chain(loader).chain(toolkits).chain(packages).chain(python)
    }

    fn describe(&self) -> String {
        let mut places = vec!["the loader's path".to_owned()];
        places.extend(self.listed.iter().chain(&self.toolkits).map(|dir| dir.display().to_string()));
        places.extend(self.packages.iter().map(|dir| format!("{}/nvidia/*/lib", dir.display())));
        places.extend(self.python.iter().map(|python| format!("the packages of {}", python.display())));
        places.join(", ")
    }
}

fn toolkit_directories(root: &Path) -> Vec<PathBuf> {
    let target = format!("targets/{}-linux/lib", std::env::consts::ARCH);
    ["lib64", "lib", &target].iter().map(|dir| root.join(dir)).collect()
}

/// pip unpacks to `nvidia/cublas/lib` for CUDA 12 and to `nvidia/cu13/lib` for CUDA 13.
fn package_directories(site: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = children(&site.join("nvidia"), "").map(|package| package.join("lib")).collect();
    found.sort();
    found
}

fn site_packages(root: &Path) -> Vec<PathBuf> {
    children(&root.join("lib"), "python3").map(|python| python.join("site-packages")).collect()
}

fn children(dir: &Path, prefix: &'static str) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path())
}

/// The `sys.path` of a Python, empty when it does not run.
fn python_path(python: &Path) -> Vec<PathBuf> {
    let mut command = Command::new(python);
    command.args(["-c", "import sys; print(*sys.path, sep='\\n')"]).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

/// The driver's library.
const DRIVER: &str = "libcuda.so.1";
/// Why a library is missing that is not there at all.
const ABSENT: &str = "was not found";

/// Whether the error says that this machine has no driver, and not that something is wrong with it.
pub(crate) fn is_driver_absent(e: &Error) -> bool {
    matches!(e, Error::MissingLibrary { library, why, .. } if library == DRIVER && why == ABSENT)
}

/// Makes the driver's library known to `cudarc`, which opens it by name: what is loaded under that name it finds.
pub(super) fn preload_driver() -> Result<()> {
    // Where containers, distributions and WSL keep it besides the loader's path.
    const PLACES: [&str; 6] = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/local/nvidia/lib64",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ];
    // SAFETY: opening the driver's library runs initializers that may run at any time, on any thread.
    let opened = |place: &Path| unsafe { Library::new(place) };
    let mut library = opened(Path::new(DRIVER));
    for place in PLACES.map(|dir| Path::new(dir).join(DRIVER)) {
        if library.is_err() && place.is_file() {
            library = opened(&place);
        }
    }
    // SAFETY: as above.
    match library.map(|library| (std::mem::forget(library), unsafe { cudarc::driver::sys::is_culib_present() })) {
        Ok((_, true)) => Ok(()),
        Ok((_, false)) => Err(no_driver("has another name inside")),
        Err(e) => {
            let why = words(&e);
            let absent = why.contains("No such file");
            Err(no_driver(&if absent { ABSENT.to_owned() } else { format!("does not load: {why}") }))
        }
    }
}

/// What the system's loader said.
fn words(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

fn no_driver(why: &str) -> Error {
    Error::MissingLibrary {
        library: DRIVER.to_owned(),
        why: why.to_owned(),
        searched: "the loader's path and the places where drivers are installed".to_owned(),
        remedy: "It is part of NVIDIA's driver: on a machine with an NVIDIA GPU install the driver (580 or newer for \
                 CUDA 13, 525 or newer for CUDA 12); give a container the GPU (`docker run --gpus all`)"
            .to_owned(),
    }
}

/// Declares a struct of functions of a library and its loader.
macro_rules! entry_points {
    ($(#[$doc:meta])* $name:ident { $($function:ident: fn($($arg:ty),*) -> $ret:ty,)* }) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub(super) struct $name { $(pub(super) $function: unsafe extern "C" fn($($arg),*) -> $ret,)* }

        impl $name {
            /// The functions of a library that stays loaded.
            pub(super) fn load(library: libloading::Library, path: &str) -> $crate::Result<Self> {
                let library: &'static libloading::Library = Box::leak(Box::new(library));
                Ok(Self { $(
                    // SAFETY: the signature is the one of the library's header, the same in CUDA 12 and 13.
                    $function: *unsafe { library.get(stringify!($function)) }
                        .map_err(|e| $crate::cuda::library::no_symbol(path, &e))?,
                )* })
            }
        }
    };
}
pub(super) use entry_points;

pub(super) fn no_symbol(path: &str, e: &libloading::Error) -> Error {
    Error::MissingLibrary {
        library: path.to_owned(),
        why: format!("lacks a function: {}", words(e)),
        searched: "it".to_owned(),
        remedy: "Install the library of CUDA 12 or 13".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { stem: "libarletest.so", package: "nvidia-arle-test", companions: None };

    fn put(root: &Path, file: &str) -> PathBuf {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "no library").unwrap();
        path
    }

    /// A search below `root` for all kinds of places, with a Python that prints `sys.path`.
    fn search(root: &Path) -> Search {
        let python = put(root, "bin/python3");
        std::fs::write(&python, format!("#!/bin/sh\necho\necho {}/system\n", root.display())).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Search {
            listed: vec![root.join("listed")],
            toolkits: vec![root.join("cuda")],
            packages: site_packages(&root.join("venv")),
            python: Some(python),
        }
    }

    #[test]
    fn every_place_is_searched_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let found = [
            put(root, "listed/libarletest.so.13"),
            put(root, "cuda/lib64/libarletest.so.12"),
            put(root, &format!("cuda/targets/{}-linux/lib/libarletest.so.13", std::env::consts::ARCH)),
            put(root, "venv/lib/python3.11/site-packages/nvidia/arle_test/lib/libarletest.so.12"),
            put(root, "venv/lib/python3.11/site-packages/nvidia/cu13/lib/libarletest.so.13"),
            put(root, "system/nvidia/cu13/lib/libarletest.so.13"),
        ];
        put(root, "cuda/lib64/libarletest.so.11");
        put(root, "venv/lib/python3.11/site-packages/nvidia/cu13/lib/libother.so.13");
        let search = search(root);
        let files = MAJORS.map(|major| WANTED.file(major));
        let places: Vec<PathBuf> = search.places(&files).collect();
        let expected: Vec<PathBuf> = found[..1]
            .iter()
            .cloned()
            .chain(files.iter().map(PathBuf::from))
            .chain(found[1..].iter().cloned())
            .collect();
        assert_eq!(places, expected);
    }

    #[test]
    fn a_missing_library_names_the_package_of_the_drivers_version_and_the_places() {
        let dir = tempfile::tempdir().unwrap();
        let search = search(dir.path());
        let error = |driver| WANTED.open(&search, driver).unwrap_err().to_string();
        let thirteen = error(Some((13, 0)));
        assert!(thirteen.contains("libarletest.so.13 or libarletest.so.12 was not found"), "{thirteen}");
        assert!(thirteen.contains("`pip install nvidia-arle-test`") && thirteen.contains("/cuda"), "{thirteen}");
        let twelve = error(Some((12, 4)));
        assert!(twelve.starts_with("libarletest.so.12 ") && twelve.contains("nvidia-arle-test-cu12"), "{twelve}");
        assert!(error(None).contains("ARLE_CUDA_LIBRARIES"));
    }

    #[test]
    fn a_file_that_does_not_load_is_reported_with_the_loaders_words() {
        let dir = tempfile::tempdir().unwrap();
        let search = search(dir.path());
        put(dir.path(), "cuda/lib64/libarletest.so.13");
        let error = WANTED.open(&search, Some((13, 0))).unwrap_err().to_string();
        assert!(error.contains("does not load") && error.contains("cuda/lib64"), "{error}");
    }

    #[test]
    fn only_an_absent_driver_means_that_there_is_no_gpu() {
        assert!(is_driver_absent(&no_driver(ABSENT)));
        assert!(!is_driver_absent(&no_driver("does not load: wrong ELF class")));
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_driver_absent(&WANTED.open(&search(dir.path()), None).err().unwrap()));
    }

    #[test]
    fn a_library_newer_than_the_driver_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let search = search(dir.path());
        put(dir.path(), "system/nvidia/cu13/lib/libarletest.so.13");
        let error = WANTED.open(&search, Some((12, 4))).unwrap_err().to_string();
        assert!(error.contains("supports CUDA 12.4") && error.contains("of CUDA 13"), "{error}");
        assert!(error.contains("nvidia-arle-test-cu12"), "{error}");
    }
}
