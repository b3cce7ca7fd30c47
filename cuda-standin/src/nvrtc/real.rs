//! The real NVRTC, where `STANDIN_NVRTC` names it: it needs no driver. A source must pass it before g++ gets it, since g++ takes
//! much that NVRTC does not, the toolkit's and the system's headers first of all.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    hash::{Hash, Hasher},
    path::Path,
    ptr::null,
};

use crate::{image::Unit, kernels::Failure, settings::settings};

type Create = unsafe extern "C" fn(
    *mut usize,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> u32;
type Compile = unsafe extern "C" fn(usize, c_int, *const *const c_char) -> u32;
type LogSize = unsafe extern "C" fn(usize, *mut usize) -> u32;
type Log = unsafe extern "C" fn(usize, *mut c_char) -> u32;
type Destroy = unsafe extern "C" fn(*mut usize) -> u32;

struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: LogSize,
    log: Log,
    destroy: Destroy,
}

/// `Err`: what the real NVRTC has against a unit. `Ok` where there is none.
pub fn refuses(unit: &Unit) -> Result<(), Failure> {
    let Some(library) = &settings().nvrtc else { return Ok(()) };
    // NVRTC takes up to two seconds for a file: what it has passed once is noted.
    let mut hasher = DefaultHasher::new();
    (unit, library).hash(&mut hasher);
    let passed = settings().cache.join(format!("{:016x}.passed", hasher.finish()));
    if passed.exists() {
        return Ok(());
    }
    Nvrtc::load(library)?.compile(unit)?;
    fs::create_dir_all(&settings().cache)?;
    fs::write(passed, "")?;
    Ok(())
}

fn c_string(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

impl Nvrtc {
    fn load(library: &Path) -> Result<Nvrtc, Failure> {
        let path = c_string(&library.to_string_lossy());
        // SAFETY: loads a library; nothing of ours is in its way, since ours was loaded without global names.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let symbol = |name: &CStr| -> Result<*mut c_void, Failure> {
            if handle.is_null() {
                return Err(Failure { log: format!("standin: {} does not load", library.display()) });
            }
            // SAFETY: asks for an address in an open library.
            let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if at.is_null() {
                let log = format!("standin: {} gives no {}", library.display(), name.to_string_lossy());
                return Err(Failure { log });
            }
            Ok(at)
        };
        // SAFETY: the functions have the types that NVRTC's header gives them.
        unsafe {
            Ok(Nvrtc {
                create: std::mem::transmute::<*mut c_void, Create>(symbol(c"nvrtcCreateProgram")?),
                compile: std::mem::transmute::<*mut c_void, Compile>(symbol(c"nvrtcCompileProgram")?),
                log_size: std::mem::transmute::<*mut c_void, LogSize>(symbol(c"nvrtcGetProgramLogSize")?),
                log: std::mem::transmute::<*mut c_void, Log>(symbol(c"nvrtcGetProgramLog")?),
                destroy: std::mem::transmute::<*mut c_void, Destroy>(symbol(c"nvrtcDestroyProgram")?),
            })
        }
    }

    fn compile(&self, unit: &Unit) -> Result<(), Failure> {
        let (source, name) = (c_string(&unit.source), c_string(&unit.name));
        let names: Vec<CString> = unit.headers.iter().map(|(name, _)| c_string(name)).collect();
        let texts: Vec<CString> = unit.headers.iter().map(|(_, text)| c_string(text)).collect();
        let options: Vec<CString> = unit.options.iter().map(|option| c_string(option)).collect();
        let (name_list, text_list, option_list) = (pointers(&names), pointers(&texts), pointers(&options));
        let or_null = |list: &Vec<*const c_char>| if list.is_empty() { null() } else { list.as_ptr() };
        let mut program = 0;
        // SAFETY: all texts live until the end of this function, and the lists have the lengths that are named.
        unsafe {
            let created = (self.create)(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                or_null(&text_list),
                or_null(&name_list),
            );
            if created != super::SUCCESS {
                return Err(Failure { log: format!("standin: the real NVRTC makes no program: {created}") });
            }
            let done = (self.compile)(program, options.len() as c_int, or_null(&option_list));
            let mut size = 0;
            (self.log_size)(program, &mut size);
            let mut log = vec![0 as c_char; size.max(1)];
            (self.log)(program, log.as_mut_ptr());
            (self.destroy)(&mut program);
            if done == super::SUCCESS {
                return Ok(());
            }
            let log = CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned();
            Err(Failure { log: format!("{log}\n(the real NVRTC, error {done})") })
        }
    }
}
