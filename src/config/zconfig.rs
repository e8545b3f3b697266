//! ZConfig's syntax: from lines to a tree of sections that knows where each item stands.
//!
//! What the items mean is the business of `schema`. The rules are those of ZConfig 4.3, with one
//! addition: `$(NAME:-default)`.
//!
//! ```text
//! # a comment
//! %define name value          later lines may say $name or ${name}; $$ is a dollar sign
//! %include other.conf         relative to this file
//! <type name>                 types and names are made lower-case
//!   key value with $name and $(ENVIRONMENT_VARIABLE)
//!   <other/>
//! </type>
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ConfigError, Place, Surroundings};
use crate::limits::{CONFIG_INCLUDE_DEPTH_MAX, CONFIG_SECTION_DEPTH_MAX, CONFIG_VALUE_LEN_MAX};

/// A section; the outermost one, whose type is empty, is the file with all that it includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// What stands first in `<type name>`.
    pub(super) kind: String,
    /// What stands second, if anything.
    pub(super) name: Option<String>,
    /// Where it begins.
    pub(super) place: Place,
    /// In the order of the file; nothing is known yet about which may be repeated.
    pub(super) keys: Vec<Key>,
    /// In the order of the file.
    pub(super) sections: Vec<Self>,
}

/// A line of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// In lower case.
    pub(super) name: String,
    /// With references replaced; may be empty.
    pub(super) value: String,
    /// Where it stands.
    pub(super) place: Place,
}

impl Section {
    fn new(kind: String, name: Option<String>, place: Place) -> Self {
        Self {
            kind,
            name,
            place,
            keys: Vec::new(),
            sections: Vec::new(),
        }
    }
}

/// Reads a file and what it includes.
pub(super) fn parse(path: &Path, around: &dyn Surroundings) -> Result<Section, ConfigError> {
    let file: Arc<Path> = path.into();
    let place = Place::File(file.clone());
    let root = Section::new(String::new(), None, place.clone());
    let mut parser = Parser {
        around,
        defines: BTreeMap::new(),
        root,
        open: Vec::new(),
    };
    let text = parser.read(path, &place)?;
    parser.file(&file, &text, 0)?;
    Ok(parser.root)
}

struct Parser<'a> {
    around: &'a dyn Surroundings,
    /// By their names in lower case. Included files share them, in both directions.
    defines: BTreeMap<String, String>,
    root: Section,
    /// Sections begun and not ended yet, the innermost last.
    open: Vec<Section>,
}

impl Parser<'_> {
    fn read(&self, path: &Path, place: &Place) -> Result<String, ConfigError> {
        self.around.read(path).map_err(|error| {
            let path = path.to_owned();
            place.refuse(SyntaxError::CannotRead {
                path,
                error: error.to_string(),
            })
        })
    }

    fn file(&mut self, file: &Arc<Path>, text: &str, depth: usize) -> Result<(), ConfigError> {
        // A file ends what it begins, and nothing else.
        let open_before = self.open.len();
        for (index, line) in text.lines().enumerate() {
            let place = Place::Line(file.clone(), index + 1);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix("</") {
                self.end(rest, open_before)
                    .map_err(|error| place.refuse(error))?;
            } else if let Some(rest) = line.strip_prefix('<') {
                self.begin(rest, &place)
                    .map_err(|error| place.refuse(error))?;
            } else if let Some(rest) = line.strip_prefix('%') {
                self.directive(rest, file, &place, depth)?;
            } else {
                self.key(line, &place)
                    .map_err(|error| place.refuse(error))?;
            }
        }
        match self.open.get(open_before) {
            Some(section) => {
                let kind = section.kind.clone();
                Err(section.place.refuse(SyntaxError::Unclosed { kind }))
            }
            None => Ok(()),
        }
    }

    fn innermost(&mut self) -> &mut Section {
        self.open.last_mut().unwrap_or(&mut self.root)
    }

    /// `type name>` or `type name/>`
    fn begin(&mut self, rest: &str, place: &Place) -> Result<(), SyntaxError> {
        let header = rest
            .strip_suffix('>')
            .ok_or(SyntaxError::MalformedSection)?;
        let (header, is_empty) = match header.strip_suffix('/') {
            Some(header) => (header, true),
            None => (header, false),
        };
        if header.starts_with(char::is_whitespace) || header.contains(['(', ')']) {
            return Err(SyntaxError::MalformedSection);
        }
        let mut words = header.split_whitespace().map(str::to_lowercase);
        let (Some(kind), name, None) = (words.next(), words.next(), words.next()) else {
            return Err(SyntaxError::MalformedSection);
        };
        if self.open.len() == CONFIG_SECTION_DEPTH_MAX {
            return Err(SyntaxError::TooDeep);
        }
        let section = Section::new(kind, name, place.clone());
        if is_empty {
            self.innermost().sections.push(section);
        } else {
            self.open.push(section);
        }
        Ok(())
    }

    /// `type>`
    fn end(&mut self, rest: &str, open_before: usize) -> Result<(), SyntaxError> {
        let kind = rest
            .strip_suffix('>')
            .ok_or(SyntaxError::MalformedSection)?;
        let kind = kind.trim_end().to_lowercase();
        if self.open.len() == open_before {
            return Err(SyntaxError::NothingToEnd { kind });
        }
        let Some(section) = self.open.pop_if(|section| section.kind == kind) else {
            let open = self.innermost().kind.clone();
            return Err(SyntaxError::Unbalanced { open, kind });
        };
        self.innermost().sections.push(section);
        Ok(())
    }

    fn key(&mut self, line: &str, place: &Place) -> Result<(), SyntaxError> {
        let (name, value) = split_key(line).ok_or(SyntaxError::MalformedKey)?;
        let key = Key {
            name: name.to_lowercase(),
            value: self.replace(value)?,
            place: place.clone(),
        };
        self.innermost().keys.push(key);
        Ok(())
    }

    fn directive(
        &mut self,
        rest: &str,
        file: &Path,
        place: &Place,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let (name, argument) =
            split_key(rest).ok_or_else(|| place.refuse(SyntaxError::UnknownDirective))?;
        match name {
            "define" | "include" | "import" if argument.is_empty() => {
                Err(place.refuse(SyntaxError::NoArgument))
            }
            "define" => self.define(argument).map_err(|error| place.refuse(error)),
            "include" => self.include(argument, file, place, depth),
            "import" => self.import(argument).map_err(|error| place.refuse(error)),
            _ => Err(place.refuse(SyntaxError::UnknownDirective)),
        }
    }

    fn define(&mut self, argument: &str) -> Result<(), SyntaxError> {
        let (name, value) = argument
            .split_once(char::is_whitespace)
            .unwrap_or((argument, ""));
        let (name, value) = (name.to_lowercase(), value.trim_start());
        if !matches!(split_name(&name), Some((_, ""))) {
            return Err(SyntaxError::NotAName { name });
        }
        // As in ZConfig, the old value is compared with what the line says before replacement.
        if self
            .defines
            .get(&name)
            .is_some_and(|earlier| earlier != value)
        {
            return Err(SyntaxError::Redefined { name });
        }
        let value = self.replace(value)?;
        self.defines.insert(name, value);
        Ok(())
    }

    fn include(
        &mut self,
        argument: &str,
        file: &Path,
        place: &Place,
        depth: usize,
    ) -> Result<(), ConfigError> {
        let argument = self
            .replace(argument)
            .map_err(|error| place.refuse(error))?;
        if depth == CONFIG_INCLUDE_DEPTH_MAX {
            return Err(place.refuse(SyntaxError::TooDeep));
        }
        // An absolute argument takes the place of the whole path.
        let path = file.parent().unwrap_or(Path::new("")).join(argument);
        let text = self.read(&path, place)?;
        self.file(&path.into(), &text, depth + 1)
    }

    /// Loads section types that Python packages bring along. Those that are built in here need no
    /// loading; of others nothing is known.
    fn import(&self, argument: &str) -> Result<(), SyntaxError> {
        let package = self.replace(argument)?;
        match package.as_str() {
            "ZODB" | "ZEO" | "zdaemon" | "ZConfig.components.logger" => Ok(()),
            _ => Err(SyntaxError::CannotImport { package }),
        }
    }

    /// Puts in what `$name`, `${name}`, `$(NAME)` and `$$` stand for.
    fn replace(&self, text: &str) -> Result<String, SyntaxError> {
        let mut replaced = String::new();
        let mut rest = text;
        while let Some((before, reference)) = rest.split_once('$') {
            replaced.push_str(before);
            rest = if let Some(after) = reference.strip_prefix('$') {
                replaced.push('$');
                after
            } else if let Some(reference) = reference.strip_prefix('(') {
                let (value, after) = self.variable(reference)?;
                replaced.push_str(&value);
                after
            } else {
                let (value, after) = self.definition(reference)?;
                replaced.push_str(value);
                after
            };
            if replaced.len() > CONFIG_VALUE_LEN_MAX {
                return Err(SyntaxError::TooLong);
            }
        }
        replaced.push_str(rest);
        Ok(replaced)
    }

    /// `name` or `{name}`, and what follows.
    fn definition<'a>(&self, reference: &'a str) -> Result<(&str, &'a str), SyntaxError> {
        let (name, after) = match reference.strip_prefix('{') {
            Some(braced) => {
                split_name(braced).and_then(|(name, after)| Some((name, after.strip_prefix('}')?)))
            }
            None => split_name(reference),
        }
        .ok_or(SyntaxError::MalformedReference)?;
        match self.defines.get(&name.to_lowercase()) {
            Some(value) => Ok((value, after)),
            None => Err(SyntaxError::NotDefined {
                name: name.to_owned(),
            }),
        }
    }

    /// `NAME)` or `NAME:-default)`, and what follows. As in a shell, the default stands for an
    /// empty variable, too.
    fn variable<'a>(&self, reference: &'a str) -> Result<(String, &'a str), SyntaxError> {
        let malformed = || SyntaxError::MalformedReference;
        let (name, rest) = split_name(reference).ok_or_else(malformed)?;
        let (inner, after) = rest.split_once(')').ok_or_else(malformed)?;
        let value = self.around.variable(name);
        if inner.is_empty() {
            let value = value.ok_or_else(|| SyntaxError::NotSet {
                name: name.to_owned(),
            })?;
            return Ok((value, after));
        }
        let default = inner.strip_prefix(":-").ok_or_else(malformed)?;
        let value = value.filter(|value| !value.is_empty());
        Ok((value.unwrap_or_else(|| default.to_owned()), after))
    }
}

/// A key and its value: white space or a parenthesis ends the key.
fn split_key(line: &str) -> Option<(&str, &str)> {
    let ends = |c: char| c.is_whitespace() || c == '(' || c == ')';
    let end = line.find(ends).unwrap_or(line.len());
    let (key, value) = line.split_at(end);
    (!key.is_empty()).then(|| (key, value.trim_start()))
}

/// A name (ASCII letters, digits, underscores; no digit first) and what follows.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let end = text.find(ends).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some((name, rest))
}

/// What is wrong with a line, whatever it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyntaxError {
    /// The file of `-C` or of `%include`.
    CannotRead {
        /// As it was looked for.
        path: PathBuf,
        /// What the system said.
        error: String,
    },
    /// Not of the form `<type name>`, `<type/>` or `</type>`.
    MalformedSection,
    /// A line that begins with a parenthesis.
    MalformedKey,
    /// `</type>` where the file has no section open.
    NothingToEnd {
        /// What it would end.
        kind: String,
    },
    /// `</type>` of another section than the innermost.
    Unbalanced {
        /// The innermost section.
        open: String,
        /// What the line would end.
        kind: String,
    },
    /// The file ends within a section; the place is where that begins.
    Unclosed {
        /// The innermost of them.
        kind: String,
    },
    /// A line that begins with `%`.
    UnknownDirective,
    /// `%define`, `%include` or `%import`, and nothing else.
    NoArgument,
    /// `%define` of something else than letters, digits and underscores.
    NotAName {
        /// What it would define.
        name: String,
    },
    /// A second `%define` with another value.
    Redefined {
        /// What it defines.
        name: String,
    },
    /// `%import` of a package whose section types are not built in.
    CannotImport {
        /// The Python package.
        package: String,
    },
    /// A `$` that is followed by nothing known.
    MalformedReference,
    /// `$name` without a `%define`.
    NotDefined {
        /// As the line has it.
        name: String,
    },
    /// `$(NAME)` without such an environment variable.
    NotSet {
        /// As the line has it.
        name: String,
    },
    /// See [`CONFIG_VALUE_LEN_MAX`].
    TooLong,
    /// See [`CONFIG_INCLUDE_DEPTH_MAX`] and [`CONFIG_SECTION_DEPTH_MAX`].
    TooDeep,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotRead { path, error } => {
                write!(f, "cannot read {}: {error}", path.display())
            }
            Self::MalformedSection => write!(f, "expected <type>, <type name> or </type>"),
            Self::MalformedKey => write!(f, "expected a key"),
            Self::NothingToEnd { kind } => write!(f, "</{kind}> ends no section of this file"),
            Self::Unbalanced { open, kind } => {
                write!(f, "</{kind}> within <{open}>, which is not ended")
            }
            Self::Unclosed { kind } => write!(f, "<{kind}> is not ended"),
            Self::UnknownDirective => write!(f, "expected %define, %include or %import"),
            Self::NoArgument => write!(f, "the directive needs an argument"),
            Self::NotAName { name } => write!(f, "'{name}' cannot be defined: not a name"),
            Self::Redefined { name } => write!(f, "'{name}' is defined already, differently"),
            Self::CannotImport { package } => {
                write!(
                    f,
                    "cannot import '{package}': section types of Python are not supported"
                )
            }
            Self::MalformedReference => {
                write!(
                    f,
                    "expected $name, ${{name}}, $(VARIABLE), $(VARIABLE:-default) or $$"
                )
            }
            Self::NotDefined { name } => write!(f, "'{name}' is not defined"),
            Self::NotSet { name } => write!(f, "environment variable '{name}' is not set"),
            Self::TooLong => {
                write!(f, "the value is longer than {CONFIG_VALUE_LEN_MAX} bytes")
            }
            Self::TooDeep => write!(f, "sections or included files are nested too deep"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Files;
    use super::*;

    fn parse(text: &str) -> Result<Section, String> {
        parse_all(&[("a.conf", text)])
    }

    fn parse_all(files: &[(&str, &str)]) -> Result<Section, String> {
        let path = Path::new(files[0].0);
        let files = Files::new(files)
            .with_variable("HOME", "/home/x")
            .with_variable("EMPTY", "");
        super::parse(path, &files).map_err(|error| error.to_string())
    }

    /// `type name{key=value ...}` for each section, without places.
    fn sketch(section: &Section) -> String {
        let keys = section
            .keys
            .iter()
            .map(|key| format!("{}={}", key.name, key.value));
        let sections = section.sections.iter().map(|inner| {
            let name = inner
                .name
                .as_ref()
                .map(|name| format!(" {name}"))
                .unwrap_or_default();
            format!("{}{name}{{{}}}", inner.kind, sketch(inner))
        });
        keys.chain(sections).collect::<Vec<_>>().join(" ")
    }

    fn sketched(text: &str) -> String {
        sketch(&parse(text).unwrap())
    }

    #[test]
    fn sections_nest_and_keys_go_to_the_innermost() {
        let text = "# comment\r\n<A One>\n\tKey  some value  \n<b/>\n<c d />\n</a >\ntop\n";
        assert_eq!(sketched(text), "top= a one{key=some value b{} c d{}}");
    }

    #[test]
    fn a_parenthesis_ends_a_key_as_in_zconfig() {
        assert_eq!(sketched("key(value) x"), "key=(value) x");
        assert_eq!(sketched("key #no comment"), "key=#no comment");
    }

    #[test]
    fn references_are_replaced() {
        let text = "%define Dir /var\n%define Sub $dir/sub\nkey ${DIR}/$dir:$sub $$dir";
        assert_eq!(sketched(text), "key=/var//var:/var/sub $dir");
        assert_eq!(sketched("key $(HOME)/a"), "key=/home/x/a");
        assert_eq!(sketched("key a$(EMPTY)b"), "key=ab");
        assert_eq!(sketched("key $(UNSET:-a b) $(EMPTY:-c)"), "key=a b c");
        // Replacements are not looked at again.
        assert_eq!(sketched("%define a $$b\nkey $a"), "key=$b");
    }

    #[test]
    fn files_are_included_relative_to_their_includer_and_share_definitions() {
        let files = [
            (
                "etc/a.conf",
                "%define x 1\n<a>\n%include sub/b.conf\n</a>\nlast $y",
            ),
            ("etc/sub/b.conf", "b $x\n%define y 2\n%include c.conf"),
            ("etc/sub/c.conf", "c $y"),
        ];
        assert_eq!(sketch(&parse_all(&files).unwrap()), "last=2 a{b=1 c=2}");
    }

    #[test]
    fn known_components_need_no_import() {
        assert_eq!(sketched("%import ZODB\nkey value"), "key=value");
    }

    #[test]
    fn an_error_in_an_included_file_names_that_file() {
        let files = [("a.conf", "%include b.conf"), ("b.conf", "\n<b>\n")];
        assert_eq!(parse_all(&files).unwrap_err(), "b.conf:2: <b> is not ended");
        let missing = "a.conf:1: cannot read b.conf: entity not found";
        assert_eq!(parse("%include b.conf").unwrap_err(), missing);
    }

    #[test]
    fn what_is_not_zconfig_is_refused() {
        for text in [
            "<a",
            "<a>",
            "<>",
            "</",
            "</a>",
            "< a>\n</a>",
            "<a b c>\n</a>",
            "<a(b)>\n</a(b)>",
            "<a>\n</b>",
            "<a>\n<b>\n</a>\n</b>",
            "(a)",
            "%",
            "%define",
            "%defin a b",
            "% define a b",
            "%define a-b c",
            "%define 1a c",
            "%define a b\n%define A c",
            "%include",
            "%import banana",
            "key $",
            "key $1",
            "key $(a",
            "key ${a",
            "key ${}",
            "key ${b}",
            "key $b",
            "key $(UNSET)",
            "key $(UNSET-x)",
            "%include a.conf",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("a.conf:"), "{text:?}: {error}");
        }
    }

    #[test]
    fn growth_is_bounded() {
        let deep = "<a>\n".repeat(100_000);
        assert!(parse(&deep).unwrap_err().contains("too deep"));
        let doubling: String = (1..64)
            .map(|n| format!("%define a{n} ${{a{}}}${{a{}}}\n", n - 1, n - 1))
            .collect();
        let error = parse(&format!("%define a0 x\n{doubling}")).unwrap_err();
        assert!(error.contains("longer"), "{error}");
    }

    #[test]
    fn items_know_their_line() {
        let root = parse("\n<a>\n\nkey value\n</a>").unwrap();
        assert_eq!(root.sections[0].place.to_string(), "a.conf:2");
        assert_eq!(root.sections[0].keys[0].place.to_string(), "a.conf:4");
    }
}
