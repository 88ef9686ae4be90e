"""Every setting of the product, read once from the environment.

`UNMASK_NAME` sets field `name`; for secrets, and for addresses that hold one, `UNMASK_NAME_FILE` may name a file that
holds the value instead (as container runtimes mount them). Anything wrong is refused at start, with the variable's name in the message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator

PREFIX = "UNMASK_"


class SettingsError(Exception):
    """A setting is wrong. The message names the variable and says what it takes."""


class Settings(BaseModel):
    """All settings, with defaults that suit one machine. Durations are seconds, sizes bytes or pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # where things are
    data_dir: Path = Path("unmask-data")
    """Everything the embedded stack keeps, and the scratch space and model cache of any worker."""
    database_url: str = ""
    """SQLAlchemy URL, `sqlite:///…` or `postgresql+psycopg://…`. Empty: SQLite in `data_dir`."""
    broker_url: str = "redis://127.0.0.1:6379/0"
    s3_endpoint: str | None = None
    """None: AWS itself."""
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr | None = None
    """None: boto3's own chain (role, profile, environment)."""
    s3_secret_key: SecretStr | None = None
    inbox_bucket: str = "inbox"
    inbox_prefix: str = ""
    sqs_url: str = ""
    """Queue (SQS) that tells of uploads into the inbox above. Empty: the store posts them, or the listing finds them."""
    sqs_endpoint: str | None = None
    """None: AWS itself. The region is that of S3."""
    sqs_access_key: SecretStr | None = None
    """None: the keys of S3."""
    sqs_secret_key: SecretStr | None = None
    results_bucket: str = "results"
    results_prefix: str = ""
    models_bucket: str = "models"

    # the web
    web_host: str = "127.0.0.1"
    web_port: int = Field(default=8080, ge=1, le=65535)
    public_url: str = ""
    """How others reach the web process; goes into result URLs. Empty: http://{web_host}:{web_port}."""
    secret_key: SecretStr | None = None
    """Signs dashboard cookies and encrypts webhook secrets at rest; at least 32 characters. The embedded stack makes its own."""
    api_key: SecretStr | None = None
    """The first key: an administrator's, whatever keys and users there are besides. With it, or with any key or user, nobody
    comes in unknown; without, a server of this machine only is open."""
    trusted_hosts: str = ""
    """Names this server answers to, separated by commas, beside its own. Empty: on loopback its own only, elsewhere any."""
    proxies: int = Field(default=0, ge=0, le=5)
    """How many proxies of yours stand before the server: so many `X-Forwarded-For`, `-Proto` and `-Host` are believed."""
    rate_limit: str = "6000/minute"
    """Requests of one key or user; empty: as many as they like. An open server counts nobody."""
    login_limit: str = "10/minute"
    """Tries to log in, from one address and for one name."""
    events_token: SecretStr | None = None
    """Bearer token that upload notifications must carry."""
    predict_wait_s: float = Field(default=20.0, ge=0, le=120)
    """How long `POST /predict` holds the line before it answers 202."""
    webhook_allow_http: bool = False
    webhook_allow_private: bool = False
    """Let webhooks reach loopback and private addresses: for receivers inside your own network."""
    events_kept_s: float = Field(default=7_776_000.0, ge=0)
    """How long webhook events and the log of their deliveries are kept, and can be replayed; 0: for ever. Those that are still to be
    sent are kept."""

    # judging
    detector: Literal["mediapipe", "haar"] = "mediapipe"
    min_detection: float = Field(default=0.5, ge=0, le=1)
    min_face_px: int = Field(default=48, ge=8)
    min_blur: float = Field(default=12.0, ge=0)
    max_blocks: float = Field(default=2.8, gt=0)
    runtime: Literal["openvino", "tensorflow"] = "openvino"
    precision: Literal["auto", "f32", "bf16", "int8"] = "auto"
    """`auto`: what the model version's card names, where the runtime has it."""
    batch_max: int = Field(default=8, ge=1, le=256)
    batch_wait_ms: float = Field(default=4.0, ge=0, le=1000)
    mesh_thickness: int = Field(default=1, ge=1, le=20)
    mesh_opacity: float = Field(default=0.75, gt=0, le=1)
    mesh_colour: str = "#19ff8c"
    png_level: int = Field(default=1, ge=0, le=9)

    # limits of an image
    max_image_bytes: int = Field(default=20_000_000, ge=1)
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    max_image_side: int = Field(default=16_384, ge=1)

    scratch_pixels_bytes: int = Field(default=1_000_000_000, ge=0)
    """Room for decoded pictures between the stages of one machine; beyond it, pictures are decoded a second time."""

    # the ledger
    lease_s: float = Field(default=15.0, ge=1)
    max_attempts: int = Field(default=3, ge=1)
    wake_after_s: float = Field(default=10.0, ge=1)
    """A queued job nobody picked up for this long is woken again."""
    sweep_s: float = Field(default=5.0, ge=0.5)
    """How often expired leases are swept."""
    reconcile_s: float = Field(default=30.0, ge=1)
    """How often the inbox is listed, to find uploads whose event was lost."""
    stage_limit_s: float = Field(default=60.0, ge=5)
    """Hard time limit of one stage of one image."""
    decode_limit_s: float = Field(default=10.0, ge=1)
    """Processor time that decoding a file may take before its process is ended, which costs an attempt."""
    decode_limit_bytes: int = Field(default=1_000_000_000, ge=1)
    """How much memory decoding a file may take."""

    # learning
    gate_promotes: bool = True
    """Whether a candidate that passes the gate takes over by itself; else it waits for `unmask models approve`."""
    gate_auc_margin: float = Field(default=0.05, ge=0, le=0.5)
    """How much lower than the champion's a candidate's AUC may at worst (one-sided 95 %) be; the estimate itself not lower at all."""
    gate_tpr_margin: float = Field(default=0.15, ge=0, le=1)
    """The same for true positives at 1 % false positives."""
    gate_max_ece: float = Field(default=0.15, ge=0, le=1)
    """Highest calibration error of a candidate."""
    gate_group_margin: float = Field(default=0.05, ge=0, le=1)
    """By how much a group's false positive rate may exceed that of everybody."""
    shadow_s: float = Field(default=86_400.0, ge=0)
    """How long a candidate that waits for a person scores live traffic unseen; 0: not at all."""
    shadow_share: float = Field(default=0.1, gt=0, le=1)
    """Of the jobs, how many it scores at most."""
    drift_min_faces: int = Field(default=100, ge=20)
    """A day with fewer judged faces is not compared."""
    drift_psi: float = Field(default=0.25, gt=0)
    """Population stability index from which on a day has drifted, if chance does not explain it."""

    # processes
    extract_workers: int = Field(default=1, ge=1)
    classify_threads: int = Field(default=8, ge=1)
    render_workers: int = Field(default=1, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # training
    train_device: Literal["cpu", "gpu", "hpu"] = "cpu"
    """What a train worker trains on. It never takes another device because this one is missing."""
    train_cards: str = ""
    """The cards of a train worker, by module id, such as 0,1. Empty: all Gaudi cards of the machine; on cpu and gpu one process, 0."""
    train_launcher: Literal["horovod", "strategy"] = "horovod"
    """How several Gaudi cards train together: mpirun and Horovod, or HPUStrategy."""
    train_bf16: Literal["auto", "off", "policy", "conversion"] = "auto"
    """Training in bfloat16: by Keras' policy, or by the Gaudi bridge's conversion of the graph. `auto`: conversion on hpu, else off."""
    train_python: str = ""
    """The interpreter that trains: one that has TensorFlow. Empty: the worker's own, or that of `.venv-train` beside the code."""
    train_hours: float = Field(default=3.0, gt=0)
    """How long a training takes that does not say so itself, in hours."""
    train_max_attempts: int = Field(default=5, ge=1)
    """So often in a row a training may die without getting on to its next checkpoint."""
    train_retry_s: float = Field(default=5.0, ge=0)
    """How long a training waits after it died, at first; four times as long each time it dies again without getting on."""
    train_stall_s: float = Field(default=1800.0, ge=1)
    """A trainer that says nothing for so long is ended, and tried again."""
    train_stop_s: float = Field(default=60.0, ge=1)
    """How long a trainer that is asked to stop may take to leave its checkpoint."""
    train_machine: str = ""
    """Name under which this machine's cards are leased. Empty: its host name. Containers with names of their own must agree on one."""
    device_root: Path = Path("/")
    """Where `dev` and `sys` of the machine are, for containers that see them elsewhere."""

    # for tests of the product itself
    faults: Path | None = None
    """A folder of ordered faults (see `pipeline.faults`): never in production."""
    faults_allowed: bool = False
    """Without it `faults` is refused."""

    @field_validator("mesh_colour")
    @classmethod
    def _colour(cls, value: str) -> str:
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", value):
            raise ValueError("must be a colour such as #19ff8c")
        return value.lower()

    @field_validator("rate_limit", "login_limit")
    @classmethod
    def _rate(cls, value: str, info: ValidationInfo) -> str:
        if not re.fullmatch(r"[1-9]\d{0,8}/(second|minute|hour|day)", value) and (value or info.field_name == "login_limit"):
            raise ValueError("must be a rate such as 10/minute")
        return value

    @field_validator("secret_key")
    @classmethod
    def _long_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 32:
            raise ValueError("must have at least 32 characters")
        return value

    @field_validator("results_prefix", "inbox_prefix")
    @classmethod
    def _no_leading_slash(cls, value: str) -> str:
        if value.startswith("/"):
            raise ValueError("must not start with a slash")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:", "postgresql+psycopg:", "postgresql:")):
            raise ValueError("must start with sqlite: or postgresql+psycopg:")
        return re.sub(r"^postgresql:", "postgresql+psycopg:", value)

    @model_validator(mode="after")
    def _whole_credentials(self) -> Settings:
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("UNMASK_S3_ACCESS_KEY and UNMASK_S3_SECRET_KEY go together: set both or neither")
        if (self.sqs_access_key is None) != (self.sqs_secret_key is None):
            raise ValueError("UNMASK_SQS_ACCESS_KEY and UNMASK_SQS_SECRET_KEY go together: set both or neither")
        if self.faults is not None and not self.faults_allowed:
            raise ValueError("UNMASK_FAULTS lets the product fail on purpose: it is refused unless UNMASK_FAULTS_ALLOWED is true")
        if self.inbox_bucket == self.results_bucket and not self.results_prefix:
            raise ValueError("UNMASK_RESULTS_BUCKET must differ from UNMASK_INBOX_BUCKET unless UNMASK_RESULTS_PREFIX is set")
        return self

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'unmask.db').absolute()}"

    @property
    def url(self) -> str:
        """How others reach the web process, without a trailing slash."""
        return (self.public_url or f"http://{self.web_host}:{self.web_port}").rstrip("/")

    @property
    def scratch_dir(self) -> Path:
        """Working copies of sources between stages; anything in it may vanish at any time."""
        return self.data_dir / "scratch"

    @property
    def trainings_dir(self) -> Path:
        """Working folders of trainings, one each; what counts of them is in the models bucket as well."""
        return self.data_dir / "trainings"

    @property
    def cards_dir(self) -> Path:
        """Lock files of the cards; the train workers of a machine share it."""
        return self.data_dir / "cards"

    @property
    def model_cache_dir(self) -> Path:
        """Verified model versions, one folder each."""
        return self.data_dir / "model-cache"


def may_be_in_a_file(name: str) -> bool:
    """Whether a setting can be given as `UNMASK_NAME_FILE`: secrets, and the two addresses that may hold a password."""
    return name in ("database_url", "broker_url") or "SecretStr" in str(Settings.model_fields[name].annotation)


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and validate the settings. Raises SettingsError, one sentence, naming the variable."""
    environment = os.environ if environment is None else environment
    values: dict[str, str] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable[len(PREFIX) :].lower()
        if name.endswith("_file") and name[:-5] in Settings.model_fields and may_be_in_a_file(name[:-5]):
            name = name[:-5]
            try:
                value = Path(value).read_text().strip()
            except OSError as error:
                raise SettingsError(f"{variable}: cannot read {value}: {error.strerror}.") from error
            if PREFIX + name.upper() in environment:
                raise SettingsError(f"{PREFIX}{name.upper()} and {variable} are both set: keep one.")
        elif name not in Settings.model_fields:
            raise SettingsError(f"{variable} is not a setting. `unmask doctor --settings` lists them all.")
        if value != "":
            values[name] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        variable = PREFIX + str(first["loc"][0]).upper() if first["loc"] else ""
        raise SettingsError(f"{variable}: {said}." if variable else f"{said}.") from error


@cache
def settings() -> Settings:
    """The settings of this process."""
    return from_environment()


def to_environment(chosen: Settings) -> dict[str, str]:
    """The environment that makes another process read exactly these settings (defaults left out)."""
    environment = {}
    for name, value in chosen:
        if value == Settings.model_fields[name].default or value is None:
            continue
        environment[PREFIX + name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    return environment
