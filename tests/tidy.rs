//! What a machine can say about the tree: who uses whom, how long files are, what must not be
//! left behind, and where test data come from.

#![allow(clippy::unwrap_used, reason = "what is unexpected ends a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file without its tests. At 800 one asks what second thing the file does.
const FILE_LINES_MAX: usize = 900;

const LINE_CHARS_MAX: usize = 100;

/// A module at the top of the crate, the modules it may use, and what else it may touch.
struct Layer {
    module: &'static str,
    may_use: &'static [&'static str],
    may_touch: &'static [&'static str],
}

const BASE: &[&str] = &[
    "ids",
    "limits",
    "cursor",
    "value",
    "pickle",
    "pickle_opcode",
    "pickle_text",
    "out_queue",
    "entry",
];

const LAYERS: &[Layer] = &[
    Layer {
        module: "ids",
        may_use: &[],
        may_touch: &[],
    },
    Layer {
        module: "limits",
        may_use: &[],
        may_touch: &[],
    },
    Layer {
        module: "cursor",
        may_use: &[],
        may_touch: &[],
    },
    Layer {
        module: "pickle_opcode",
        may_use: &[],
        may_touch: &[],
    },
    Layer {
        module: "pickle_text",
        may_use: &[],
        may_touch: &[],
    },
    Layer {
        module: "value",
        may_use: &["ids", "limits", "cursor"],
        may_touch: &[],
    },
    Layer {
        module: "entry",
        may_use: &["ids", "limits", "cursor"],
        may_touch: &[],
    },
    Layer {
        module: "replica",
        may_use: &[
            "ids",
            "limits",
            "cursor",
            "value",
            "pickle",
            "out_queue",
            "entry",
            "group",
        ],
        may_touch: &[],
    },
    Layer {
        module: "out_queue",
        may_use: &["limits"],
        may_touch: &[],
    },
    Layer {
        module: "pickle",
        may_use: BASE,
        may_touch: &[],
    },
    Layer {
        module: "group",
        may_use: BASE,
        may_touch: &[],
    },
    Layer {
        module: "exit",
        may_use: &[],
        may_touch: &[],
    },
    Layer {
        module: "zeo",
        may_use: BASE,
        may_touch: &[],
    },
    Layer {
        module: "storage",
        may_use: BASE,
        may_touch: &[],
    },
    Layer {
        module: "log_disk",
        may_use: &["ids", "limits", "cursor", "storage", "entry", "replica"],
        may_touch: &[],
    },
    Layer {
        module: "node",
        may_use: &[
            "ids", "limits", "value", "storage", "entry", "group", "replica", "log_disk",
        ],
        may_touch: &[],
    },
    Layer {
        module: "admin",
        may_use: &["ids", "limits", "out_queue", "replica"],
        may_touch: &[],
    },
    Layer {
        module: "peer",
        may_use: &[
            "ids",
            "limits",
            "cursor",
            "value",
            "pickle",
            "out_queue",
            "entry",
            "replica",
            "storage",
        ],
        may_touch: &[],
    },
    Layer {
        module: "server",
        may_use: &[
            "ids", "limits", "cursor", "pickle", "zeo", "storage", "entry", "replica",
        ],
        may_touch: &[],
    },
    Layer {
        module: "follow",
        may_use: &[
            "ids",
            "limits",
            "value",
            "pickle",
            "pickle_opcode",
            "zeo",
            "storage",
        ],
        may_touch: &[],
    },
    Layer {
        module: "tls",
        may_use: &["limits", "config"],
        may_touch: &[],
    },
    Layer {
        module: "args",
        may_use: BASE,
        may_touch: &[],
    },
    Layer {
        module: "config",
        may_use: &["ids", "limits", "args", "logging"],
        may_touch: &[],
    },
    Layer {
        module: "logging",
        may_use: &[],
        may_touch: &["std::fs"],
    },
    Layer {
        module: "reactor",
        may_use: &[
            "ids",
            "limits",
            "cursor",
            "out_queue",
            "zeo",
            "storage",
            "server",
            "follow",
            "group",
            "peer",
            "admin",
            "node",
            "log_disk",
            "replica",
            "tls",
            "config",
            "logging",
            "exit",
        ],
        may_touch: &[
            "mio",
            "std::net",
            "std::os::unix::net",
            "rustix::net",
            "rustix::fs",
            "Instant::now",
            "SystemTime::now",
        ],
    },
    Layer {
        module: "main",
        may_use: &["args", "config", "exit", "logging", "reactor"],
        may_touch: &["std::fs"],
    },
    Layer {
        module: "lib",
        may_use: &[],
        may_touch: &[],
    },
];

/// The outside world, which most of the crate must not know.
const OUTSIDE: &[&str] = &[
    "mio",
    "std::net",
    "std::os::unix::net",
    "std::fs",
    "rustix::net",
    "rustix::fs",
    "Instant::now",
    "SystemTime::now",
];

/// Files of a layer that touch what the rest of it does not.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("storage/disk.rs", "std::fs"),
    ("storage/disk.rs", "rustix::fs"),
    ("tls/load.rs", "std::fs"),
    // Certificates and logs of tests.
    ("reactor/office_tests.rs", "std::fs"),
    ("reactor/peers/tests.rs", "std::fs"),
    // Any time will do there.
    ("replica/tests.rs", "Instant::now"),
    ("peer/tests.rs", "Instant::now"),
    ("node/tests.rs", "Instant::now"),
    // Ends a connection whose daemon may never answer.
    ("group/corosync/ffi.rs", "rustix::net"),
];

#[test]
fn layers_use_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for file in sources() {
        let Some(layer) = LAYERS.iter().find(|layer| layer.module == file.module()) else {
            wrong.push(format!("{}: this module is in no layer", file.name));
            continue;
        };
        let uses = modules_named(&file.code);
        for used in uses.iter().filter(|used| *used != layer.module) {
            if !layer.may_use.contains(&used.as_str()) {
                wrong.push(format!(
                    "{}: {} must not use {used}",
                    file.name, layer.module
                ));
            }
        }
        for outside in OUTSIDE {
            let allowed = layer.may_touch.contains(outside)
                || EXCEPTIONS.contains(&(file.name.as_str(), outside));
            if !allowed && mentions(&file.code, outside) {
                wrong.push(format!(
                    "{}: {} must not touch {outside}",
                    file.name, layer.module
                ));
            }
        }
    }
    assert_nothing(&wrong);
}

#[test]
fn unsafe_code_is_in_one_file() {
    // Anywhere else the compiler refuses it, unless a file says that it shall not.
    let files = sources().into_iter().chain(sources_in("tools"));
    let names: Vec<String> = files
        .filter(|file| mentions(&file.code, "unsafe_code"))
        .map(|file| file.name)
        .collect();
    assert_eq!(names, ["group/corosync/ffi.rs"]);
}

#[test]
fn no_server_decodes_what_only_onlookers_do() {
    // It knows classes that nothing is done with; a client's bytes must not get there.
    let users = |path: &str| -> Vec<String> {
        let files = sources().into_iter();
        let users = files.filter(|file| mentions(&file.code, path));
        users.map(|file| file.name).collect()
    };
    assert_eq!(users("decode_any"), ["pickle.rs", "zeo/client.rs"]);
    // Whom it follows is chosen by the administrator, and what is copied is not what was read so.
    assert_eq!(users("zeo::client"), ["follow/conversation.rs"]);
    assert_eq!(users("client::decode"), [""; 0]);
}

/// What tools may use: codecs, the loop that is made for them, and none of what serves.
const TOOLS_MAY_USE: &[&str] = &[
    "ids",
    "limits",
    "cursor",
    "value",
    "pickle",
    "out_queue",
    "zeo",
    "storage",
    "group",
    "entry",
    "replica",
    "peer",
    "admin",
    "args",
    "config",
    "exit",
    "reactor",
];

/// Files of tools that touch the outside world, each a part of it.
const TOOLS_MAY_TOUCH: &[(&str, &[&str])] = &[
    ("bench/fleet.rs", &["mio", "std::net", "Instant::now"]),
    ("bench/process.rs", &["std::fs"]),
    ("bench/stub.rs", &["mio", "std::net", "std::os::unix::net"]),
    ("ctl/client.rs", &["std::net", "std::os::unix::net"]),
    ("ctl/main.rs", &["std::fs"]),
    ("dump/files.rs", &["std::fs"]),
    ("dump/main.rs", &["Instant::now"]),
    ("dump/record.rs", &["std::fs"]),
    ("groupd/tell.rs", &["std::os::unix::net"]),
];

#[test]
fn tools_use_codecs_and_touch_the_outside_in_one_place() {
    let mut wrong = Vec::new();
    let tools = sources_in("tools");
    assert!(!tools.is_empty());
    for file in tools {
        for used in modules_named(&file.code.replace("crate::", "")) {
            if !TOOLS_MAY_USE.contains(&used.as_str()) {
                wrong.push(format!("tools/{}: a tool must not use {used}", file.name));
            }
        }
        let allowed = TOOLS_MAY_TOUCH.iter().find(|(name, _)| *name == file.name);
        let allowed = allowed.map_or(&[][..], |(_, outside)| outside);
        for outside in OUTSIDE.iter().filter(|outside| !allowed.contains(outside)) {
            if mentions(&file.code, outside) {
                wrong.push(format!("tools/{} must not touch {outside}", file.name));
            }
        }
    }
    assert_nothing(&wrong);
}

#[test]
fn files_and_lines_are_short() {
    let mut wrong = Vec::new();
    for file in sources().into_iter().chain(sources_in("tools")) {
        let lines = file.code.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{}: {lines} lines without tests", file.name));
        }
    }
    let directories = ["src", "tests", "tools", "benches"];
    for (name, text) in directories.into_iter().flat_map(rust_files) {
        for (n, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                wrong.push(format!("{name}:{}: longer than {LINE_CHARS_MAX}", n + 1));
            }
        }
    }
    assert_nothing(&wrong);
}

#[test]
fn nothing_is_left_behind() {
    // Put together here, so that this file does not contain them.
    let banned = [
        concat!("dbg", "!("),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("#[ign", "ore"),
        concat!("<<<<", "<<<"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        env!("CARGO_MANIFEST_DIR"),
    ];
    let mut wrong = Vec::new();
    for path in project_files() {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for (n, line) in text.lines().enumerate() {
            for word in banned {
                if line.contains(word) {
                    wrong.push(format!("{}:{}: {word}", path.display(), n + 1));
                }
            }
        }
    }
    assert_nothing(&wrong);
}

#[test]
fn test_data_say_where_they_come_from() {
    let readme = fs::read_to_string(root().join("tests/data/README.md")).unwrap();
    let origins: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let mut wrong = Vec::new();
    let mut found = BTreeSet::new();
    for path in files_below(&root().join("tests/data")) {
        let name = relative(&path, "tests/data");
        // A line for a directory covers what is in it.
        match origins
            .iter()
            .find(|origin| name == **origin || name.starts_with(**origin))
        {
            Some(origin) => _ = found.insert(*origin),
            None if name == "README.md" => {}
            None => wrong.push(format!("tests/data/{name}: no origin in README.md")),
        }
    }
    for origin in origins.iter().filter(|origin| !found.contains(*origin)) {
        wrong.push(format!("tests/data/README.md: there is no {origin}"));
    }
    assert_nothing(&wrong);
}

/// A source file without its tests and comments.
struct Source {
    /// The path below `src`, or below `tools`.
    name: String,
    code: String,
}

impl Source {
    fn module(&self) -> &str {
        let first = self.name.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

/// The sources, without modules that only tests have.
fn sources() -> Vec<Source> {
    sources_in("src")
}

fn sources_in(directory: &str) -> Vec<Source> {
    rust_files(directory)
        .into_iter()
        .map(|(name, text)| (name[directory.len() + 1..].to_owned(), text))
        .filter(|(name, _)| !name.ends_with("/testing.rs"))
        .map(|(name, text)| Source {
            name,
            code: without_tests_and_comments(&text),
        })
        .collect()
}

/// Unit tests are at the bottom of a file; where there is more than one `#[cfg(test)]`, the first
/// that begins a module with a body begins them.
fn without_tests_and_comments(text: &str) -> String {
    let code = match text.find("#[cfg(test)]\nmod tests {") {
        Some(pos) => &text[..pos],
        None => text,
    };
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// Modules of the crate that are named by `crate::name`, `standby::name`, or
/// `crate::{name, ..}`.
fn modules_named(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for root in ["crate::", "standby::"] {
        for (pos, _) in code.match_indices(root) {
            let rest = &code[pos + root.len()..];
            match rest.strip_prefix('{') {
                Some(list) => names.extend(first_names_in_braces(list)),
                None => _ = names.insert(leading_name(rest).to_owned()),
            }
        }
    }
    names
}

/// In `a::{b, c}, d}` these are `a` and `d`.
fn first_names_in_braces(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut at_start = true;
    for (pos, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            _ if at_start && !character.is_whitespace() => {
                names.push(leading_name(&list[pos..]).to_owned());
                at_start = false;
            }
            _ => {}
        }
    }
    names
}

fn leading_name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// Is `path` in the code, as a whole name, and not as the end of another?
fn mentions(code: &str, path: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    // `use std::{fs, io}` is not how we write, but nobody would notice.
    let braced = path.strip_prefix("std::").is_some_and(|name| {
        code.match_indices("use std::{").any(|(pos, start)| {
            first_names_in_braces(&code[pos + start.len()..])
                .iter()
                .any(|first| first == name)
        })
    });
    braced
        || code.match_indices(path).any(|(pos, _)| {
            !code[..pos].ends_with(is_name) && !code[pos + path.len()..].starts_with(is_name)
        })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Name below the project, and text, of the Rust files in a directory of it.
fn rust_files(directory: &str) -> Vec<(String, String)> {
    files_below(&root().join(directory))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (relative(&path, ""), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// What belongs to the project: no products, no data.
fn project_files() -> Vec<PathBuf> {
    [
        "Cargo.toml",
        "src",
        "tests",
        "benches",
        "tools",
        "conf",
        "README.md",
        "CHANGES.md",
        ".ci",
    ]
    .iter()
    .flat_map(|name| files_below(&root().join(name)))
    .filter(|path| !path.starts_with(root().join("tests/data")))
    .collect()
}

/// Files at or below a path, sorted; none if there is nothing.
fn files_below(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .filter(|path| !path.ends_with("__pycache__"))
        .flat_map(|path| files_below(path))
        .collect()
}

fn relative(path: &Path, base: &str) -> String {
    path.strip_prefix(root().join(base))
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

#[track_caller]
fn assert_nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_checks_see_what_they_look_for() {
    let code = "use crate::ids::Oid;\nuse crate::{limits, zeo::{Call, pickle}};\nmio_like::x();";
    let modules: Vec<String> = modules_named(code).into_iter().collect();
    assert_eq!(modules, ["ids", "limits", "zeo"]);
    assert!(!mentions(code, "mio"));
    assert!(mentions("let poll = mio::Poll::new();", "mio"));
    assert!(mentions("use std::{fs, io};", "std::fs"));
    assert_eq!(
        without_tests_and_comments("a\n// b\n#[cfg(test)]\nmod tests {\n}\n"),
        "a\n"
    );
}
