//! Files of every kind, good ones and broken ones: most are in `tests/fixtures/pictures`.

use std::path::PathBuf;

use image::{GrayAlphaImage, GrayImage, ImageFormat, Luma, LumaA, RgbImage, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::operators::testing::case;

fn fixture(name: &str) -> PathBuf {
    case("pictures").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn encoded(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.into().write_to(&mut out, format).unwrap();
    out.into_inner()
}

fn decoded(bytes: &[u8]) -> Result<Decoded, String> {
    finish(decoder(bytes, MAX_PIXELS)?, MAX_PIXELS, true)
}

fn noise() -> RgbImage {
    RgbImage::from_fn(48, 32, |x, y| image::Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8]))
}

/// A file of these bytes, read as a picture or as a mask.
struct Written(tempfile::TempDir);

impl Written {
    fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), bytes).unwrap();
        Self(folder)
    }
    fn path(&self) -> PathBuf {
        self.0.path().join("file")
    }
    fn picture(&self) -> Result<Rgb, String> {
        Rgb::open(&self.path(), MAX_PIXELS)
    }
    fn mask(&self) -> Result<Foreground, String> {
        Foreground::open(&self.path(), MAX_PIXELS)
    }
}

fn mask_of(picture: impl Into<DynamicImage>) -> Result<Foreground, String> {
    Written::new(&encoded(picture, ImageFormat::Png)).mask()
}

/// Warm on the left, cold on the right: what the coloured fixtures show.
#[track_caller]
fn is_the_scene(picture: &Rgb) {
    assert_eq!((picture.width, picture.height), (48, 32));
    let pixel = |x: usize, y: usize| picture.rgb[(y * 48 + x) * 3];
    assert!(pixel(4, 4) > 150 && pixel(44, 4) < 90, "{} {}", pixel(4, 4), pixel(44, 4));
}

/// Foreground in the left half of 48 x 32 pixels: what the masks among the fixtures show.
#[track_caller]
fn is_the_left_half(mask: &Foreground) {
    assert_eq!((mask.width, mask.height), (48, 32));
    assert!((0..48 * 32).all(|i| mask.inside[i] == (i % 48 < 24)));
}

#[test]
fn jpegs_of_several_scans_and_webps_with_and_without_loss_are_read() {
    for name in ["progressive.jpg", "lossy.webp"] {
        is_the_scene(&Rgb::open(&fixture(name), MAX_PIXELS).unwrap());
    }
    let scene = Rgb::open(&fixture("lossy.webp"), MAX_PIXELS).unwrap();
    let image = RgbImage::from_raw(48, 32, scene.rgb.clone()).unwrap();
    assert_eq!(Written::new(&encoded(image, ImageFormat::WebP)).picture().unwrap(), scene);
}

#[test]
fn what_follows_a_picture_is_not_part_of_it() {
    let video = [b"\0\0\0\x18ftypmp42".to_vec(), vec![0xff, 0xda, 1, 2, 3, 0xff, 0xda]].concat();
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        let alone = encoded(noise(), format);
        let expected = Written::new(&alone).picture().unwrap();
        let found = Written::new(&[alone, video.clone()].concat()).picture();
        assert_eq!(found.unwrap(), expected, "{format:?}");
    }
}

#[test]
fn every_cut_of_a_picture_is_refused_as_cut_short() {
    for name in
        ["progressive.jpg", "lossy.webp", "lossy_alpha.webp", "turned.webp", "turned.png", "interlaced.png"]
    {
        let whole = bytes(name);
        for length in 16..whole.len() {
            let error = decoded(&whole[..length]).err();
            assert!(error.as_ref().is_some_and(|e| e.contains("cut short")), "{name} {length}: {error:?}");
        }
        for length in 0..16 {
            assert!(decoded(&whole[..length]).is_err(), "{name} {length}");
        }
        decoded(&whole).map(|_| ()).unwrap();
    }
}

#[test]
fn what_is_not_one_rgb_picture_is_refused_by_name() {
    for (name, expected) in [
        ("cmyk.jpg", "is a CMYK JPEG"),
        ("animated.webp", "is an animation"),
        ("animated.png", "is an animation"),
    ] {
        let error = Rgb::open(&fixture(name), MAX_PIXELS).unwrap_err();
        assert!(error.contains(expected) && error.contains(name), "{error}");
    }
}

#[test]
fn pictures_and_masks_are_turned_as_their_exif_says() {
    for name in ["turned.webp", "turned.png"] {
        let picture = Rgb::open(&fixture(name), MAX_PIXELS).unwrap();
        assert!(picture.turned && picture.width > picture.height, "{name}");
        let pixel = |x: usize| picture.rgb[(picture.height / 4 * picture.width + x) * 3];
        assert!(pixel(2) > 150 && pixel(picture.width - 3) < 90, "{name}");
    }
    // The same EXIF in a mask: its bright upper half becomes the right half.
    let upper =
        encoded(GrayImage::from_fn(8, 8, |_, y| Luma([if y < 4 { 255 } else { 0 }])), ImageFormat::Png);
    let stored = bytes("turned.png");
    let at = stored.windows(4).position(|w| w == b"eXIf").unwrap();
    let length = u32::from_be_bytes(*stored[at - 4..at].first_chunk().unwrap()) as usize;
    let chunk = &stored[at - 4..at + 8 + length];
    let mask = Written::new(&[&upper[..33], chunk, &upper[33..]].concat()).mask().unwrap();
    assert!(mask.turned && (0..64).all(|i| mask.inside[i] == (i % 8 >= 4)));
}

#[test]
fn a_claimed_size_is_refused_before_memory_is_asked_for_it() {
    // Headers alone: no file of this length holds so many pixels, and none is decoded.
    let png = |width: u32, height: u32| {
        let mut bytes = bytes("interlaced.png");
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        bytes
    };
    let jpeg = {
        let mut bytes = encoded(noise(), ImageFormat::Jpeg);
        let at = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        bytes[at + 5..at + 9].fill(0xff);
        bytes
    };
    let webp = {
        let mut bytes = bytes("lossy_alpha.webp");
        // One less than each side, in three bytes.
        bytes[24..30].copy_from_slice(&[0x5f, 0xea, 0, 0x5f, 0xea, 0]);
        bytes
    };
    for (name, bytes, size) in [
        ("PNG", png(60000, 60000), "60000 x 60000"),
        ("PNG", png(u32::MAX >> 1, u32::MAX >> 1), "2147483647 x 2147483647"),
        ("JPEG", jpeg, "65535 x 65535"),
        ("WebP", webp, "60000 x 60000"),
    ] {
        let file = Written::new(&bytes);
        let error = file.picture().unwrap_err();
        assert!(
            error.contains(size) && error.contains("max_pixels") && error.contains("file"),
            "{name}: {error}"
        );
        assert!(file.mask().is_err());
    }
    assert!(Written::new(&png(0, 7)).picture().unwrap_err().contains("no pixels"));
    // The limit is a setting in both directions.
    assert!(Rgb::open(&fixture("lossy.webp"), 48 * 32).is_ok());
    assert!(Rgb::open(&fixture("lossy.webp"), 48 * 32 - 1).unwrap_err().contains("allows 1535"));
}

#[test]
fn a_file_longer_than_any_picture_is_not_read() {
    let file = Written::new(b"\x89PNG\r\n\x1a\n");
    std::fs::File::options().write(true).open(file.path()).unwrap().set_len(1 << 42).unwrap();
    assert!(file.picture().unwrap_err().contains("MiB long, more than any picture"));
}

#[test]
fn only_regular_files_with_something_in_them_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| Rgb::open(path, MAX_PIXELS).unwrap_err();
    assert!(error(folder.path()).contains("is a folder"));
    assert!(error(&folder.path().join("~/x.png")).contains("`~` means your home folder only"));
    assert!(error(&folder.path().join("x.png")).ends_with("x.png: there is no such file"));
    assert!(Written::new(b"").picture().unwrap_err().contains("is empty"));
}

#[cfg(target_os = "linux")]
#[test]
fn pipes_devices_and_files_of_the_system_are_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for path in [pipe.as_path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
        let error = Rgb::open(path, MAX_PIXELS).unwrap_err();
        assert!(error.contains("only regular files are read"), "{error}");
    }
    // Regular by name, and without an end or a beginning.
    for path in
        ["/proc/kmsg", "/proc/self/status", "/proc/kcore"].map(Path::new).into_iter().filter(|p| p.exists())
    {
        Rgb::open(path, MAX_PIXELS).unwrap_err();
    }
}

#[test]
fn masks_of_one_bit_of_a_palette_of_16_bits_and_interlaced_are_read() {
    for name in ["one_bit.png", "palette_white.png", "deep_65535.png", "interlaced.png"] {
        is_the_left_half(&Foreground::open(&fixture(name), MAX_PIXELS).unwrap());
    }
}

#[test]
fn a_mask_without_foreground_says_how_bright_it_is_and_what_to_do() {
    let grey = |value| mask_of(GrayImage::from_pixel(8, 8, Luma([value]))).unwrap_err();
    assert!(grey(0).contains("black everywhere"));
    assert!(grey(1).contains("brightest value is 1 of 255") && grey(1).contains("multiply by 255"));
    assert!(grey(127).contains("127 of 255") && grey(127).contains("one label"));
    let of = |name| Foreground::open(&fixture(name), MAX_PIXELS).unwrap_err();
    let (deep, palette) = (of("deep_255.png"), of("palette_label.png"));
    assert!(deep.contains("255 of 65535") && deep.contains("multiply by 257"), "{deep}");
    assert!(
        palette.contains("(128, 0, 0), which is 42 of 255") && palette.contains("one label"),
        "{palette}"
    );
    let one = mask_of(image::ImageBuffer::<Luma<u16>, _>::from_pixel(8, 8, Luma([1]))).unwrap_err();
    assert!(one.contains("1 of 65535") && one.contains("multiply by 65535"), "{one}");
}

#[test]
fn a_mask_with_colours_is_refused_though_some_of_it_is_bright() {
    // The border of labelled pictures is nearly white: it alone would be the subject.
    let labels =
        RgbImage::from_fn(8, 8, |x, _| image::Rgb(if x < 4 { [128, 0, 0] } else { [224, 224, 192] }));
    let error = mask_of(labels).unwrap_err();
    assert!(error.contains("(128, 0, 0) at x 0, y 0") && error.contains("one label"), "{error}");
}

#[test]
fn the_alpha_of_a_cut_out_is_its_mask_whatever_its_colours() {
    let left = |x: u32| x < 24;
    let scene = noise();
    let cut = |clear: fn(u32, u32, &RgbImage) -> [u8; 3]| {
        RgbaImage::from_fn(48, 32, |x, y| {
            let [r, g, b] = if left(x) { scene.get_pixel(x, y).0 } else { clear(x, y, &scene) };
            Rgba([r, g, b, if left(x) { 255 } else { 0 }])
        })
    };
    is_the_left_half(&mask_of(cut(|_, _, _| [0; 3])).unwrap());
    is_the_left_half(&mask_of(cut(|x, y, scene| scene.get_pixel(x, y).0)).unwrap());
    for flat in [0, 90, 255] {
        let mask = RgbaImage::from_fn(48, 32, |x, _| Rgba([flat, flat, flat, if left(x) { 255 } else { 0 }]));
        is_the_left_half(&mask_of(mask).unwrap());
    }
    for name in ["grey_alpha.png", "palette_alpha.png"] {
        let mask = Foreground::open(&fixture(name), MAX_PIXELS).unwrap();
        is_the_left_half(&mask);
    }
    let webp = Foreground::open(&fixture("lossy_alpha.webp"), MAX_PIXELS).unwrap();
    assert!((0..48 * 32).all(|i| webp.inside[i] == (8..32).contains(&(i % 48))));
}

#[test]
fn colours_and_alpha_that_agree_are_one_mask_and_those_that_do_not_are_refused() {
    let picture = |white: fn(u32) -> bool| {
        RgbaImage::from_fn(48, 32, |x, _| {
            let grey = if white(x) { 255 } else { 0 };
            Rgba([grey, grey, grey, if x < 24 { 255 } else { 0 }])
        })
    };
    is_the_left_half(&mask_of(picture(|x| x < 24)).unwrap());
    for white in [|x| x >= 24, |x| x < 12, |x| x < 36] as [fn(u32) -> bool; 3] {
        let error = mask_of(picture(white)).unwrap_err();
        assert!(error.contains("by its alpha 50 %") && error.contains("by its colours"), "{error}");
    }
}

#[test]
fn an_opaque_alpha_is_ignored_and_a_clear_one_refused() {
    let mask = |alpha: u8| {
        mask_of(GrayAlphaImage::from_fn(48, 32, |x, _| LumaA([if x < 24 { 255 } else { 0 }, alpha])))
    };
    is_the_left_half(&mask(255).unwrap());
    is_the_left_half(&mask(200).unwrap());
    assert!(mask(0).unwrap_err().contains("fully transparent"));
    assert!(mask(1).unwrap_err().contains("largest alpha is 1 of 255"));
    assert!(mask(127).unwrap_err().contains("127 of 255"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damaged_bytes_are_a_picture_or_an_error_that_names_the_file(
        name in prop::sample::select(vec![
            "progressive.jpg", "lossy.webp", "lossy_alpha.webp", "turned.webp", "turned.png", "interlaced.png",
            "palette_alpha.png", "deep_255.png", "animated.webp",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = bytes(name);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        let file = Written::new(&bytes);
        // Small enough that what a damaged header claims is decoded in no time.
        for error in [Rgb::open(&file.path(), 1 << 20).err(), Foreground::open(&file.path(), 1 << 20).err()] {
            prop_assert!(error.is_none_or(|e| e.starts_with(&file.path().display().to_string())));
        }
    }
}

#[test]
fn a_picture_as_it_is_stored_is_not_turned_and_its_size_is_known_by_its_header() {
    for name in ["turned.png", "turned.webp"] {
        let path = fixture(name);
        let (seen, stored) =
            (Rgb::open(&path, MAX_PIXELS).unwrap(), Rgb::open_stored(&path, MAX_PIXELS).unwrap());
        assert!(seen.turned && (seen.height, seen.width) == (stored.width, stored.height), "{name}");
        assert_ne!(seen.rgb, stored.rgb, "{name}");
        let found = Rgb::stored_size(&path, MAX_PIXELS).unwrap();
        assert_eq!(found, StoredSize { size: (stored.height, stored.width), turned: true }, "{name}");
    }
    let path = fixture("interlaced.png");
    assert!(!Rgb::stored_size(&path, MAX_PIXELS).unwrap().turned);
    assert_eq!(Rgb::open_stored(&path, MAX_PIXELS).unwrap(), Rgb::open(&path, MAX_PIXELS).unwrap());
    let error = Rgb::stored_size(&path, 1).unwrap_err();
    assert!(error.contains("max_pixels") && error.contains("interlaced.png"), "{error}");
}
