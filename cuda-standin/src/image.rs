//! What stands in the place of PTX and of machine code: the source, its headers and its options, as text.
//!
//! A program may keep images on the disk. One that names a compiled library would go stale with it, and would run without checks
//! where it was first compiled without. So the image is complete, and is compiled again wherever it is loaded.

const MARK: &str = "// image of the CUDA stand-in, 1";

/// What a compilation gets.
#[derive(Clone, Default, PartialEq, Debug, Hash)]
pub struct Unit {
    pub name: String,
    pub source: String,
    /// Names and texts of headers that were handed over with it.
    pub headers: Vec<(String, String)>,
    pub options: Vec<String>,
}

/// What a unit was compiled for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Target {
    /// `compute_90`: PTX, for this capability and all that are newer.
    Virtual(u32),
    /// `sm_90`: machine code, for capabilities of the same generation that are not older.
    Real(u32),
}

impl Target {
    pub fn runs_on(self, capability: u32) -> bool {
        match self {
            Target::Virtual(least) => least <= capability,
            Target::Real(least) => least / 10 == capability / 10 && least <= capability,
        }
    }
}

impl Unit {
    /// NVRTC's default where no option names an architecture.
    const DEFAULT_TARGET: Target = Target::Virtual(75);

    pub fn target(&self) -> Target {
        let named = |option: &String| {
            let arch = ["--gpu-architecture=", "-arch="].iter().find_map(|flag| option.strip_prefix(flag))?;
            let (kind, number) = arch.split_once('_')?;
            let number = number.trim_end_matches(|end: char| end.is_ascii_lowercase()).parse().ok()?;
            Some(if kind == "sm" { Target::Real(number) } else { Target::Virtual(number) })
        };
        self.options.iter().rev().find_map(named).unwrap_or(Unit::DEFAULT_TARGET)
    }

    pub fn to_image(&self) -> String {
        let mut image = format!("{MARK}\n");
        let mut part = |text: &str| {
            image += &format!("// {} bytes\n{text}\n", text.len());
        };
        part(&self.name);
        part(&self.source);
        part(&self.options.len().to_string());
        self.options.iter().for_each(|option| part(option));
        self.headers.iter().for_each(|(name, text)| {
            part(name);
            part(text);
        });
        image
    }

    /// `None`: not one of ours.
    pub fn from_image(image: &str) -> Option<Unit> {
        let mut rest = image.strip_prefix(MARK)?.strip_prefix('\n')?;
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (length, after) = rest.strip_prefix("// ")?.split_once(" bytes\n")?;
            let length = length.parse::<usize>().ok()?;
            parts.push(after.get(..length)?.to_owned());
            rest = after.get(length..)?.strip_prefix('\n')?;
        }
        let mut parts = parts.into_iter();
        let (name, source) = (parts.next()?, parts.next()?);
        let options = parts.next()?.parse().ok()?;
        let options: Vec<String> = parts.by_ref().take(options).collect();
        let mut headers = Vec::new();
        while let Some(name) = parts.next() {
            headers.push((name, parts.next()?));
        }
        Some(Unit { name, source, headers, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_gives_back_what_it_was_made_of() {
        let unit = Unit {
            name: "a.cu".into(),
            source: "// 3 bytes\n#include \"b.cuh\"\n\n".into(),
            headers: vec![("b.cuh".into(), "\n// é\n".into()), ("c.cuh".into(), String::new())],
            options: vec!["-DN=3".into(), "--gpu-architecture=sm_90a".into()],
        };
        assert_eq!(Unit::from_image(&unit.to_image()), Some(unit.clone()));
        assert_eq!(unit.target(), Target::Real(90));
        assert_eq!(Unit::from_image(".version 9.0"), None);
        assert_eq!(Unit::from_image(&unit.to_image()[..100]), None);
    }

    #[test]
    fn machine_code_runs_on_its_generation_and_ptx_on_what_is_newer() {
        assert!(Target::Virtual(80).runs_on(90) && !Target::Virtual(90).runs_on(80));
        assert!(
            Target::Real(80).runs_on(86) && !Target::Real(80).runs_on(90) && !Target::Real(86).runs_on(80)
        );
    }
}
