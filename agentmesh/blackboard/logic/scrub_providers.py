"""The credential formats of providers: prefix, alphabet and length, as the providers and their secret-scanning partners publish them.

Owns the table and nothing else. Each row is (kind, what must occur in the text for the pattern to be tried, pattern). The
literal test makes the table cheap: 170 substring searches cost some 10 us at 500 bytes, and a pattern is compiled when its
literal first occurs. Minimum lengths are a little below the published ones, since formats grow and pastes are cut short.
Every repetition is bounded or possessive, so that each pattern is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

from agentmesh.blackboard.logic.redaction import Finding
from agentmesh.blackboard.logic.secret_values import stands_for_a_secret

PROVIDER_RANK: Final = 10
_MIN_DISTINCT_CHARS: Final = 6  # `ghp_xxxxxxxx…` in documentation is no token


class Provider(NamedTuple):
    kind: str
    literals: tuple[str, ...]
    pattern: str


# A pattern that begins with letters which could end a word has this before it; `\n` and `%3D` come from JSON and URLs.
_B: Final = r"(?:(?<![A-Za-z0-9_])|(?<=\\[nrt])|(?<=%[0-9A-F]{2}))"
_E: Final = r"(?![A-Za-z0-9])"
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

_CODE_HOSTS: Final = (
    Provider("GITHUB_TOKEN", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{30,255}+"),
    Provider("GITHUB_TOKEN", ("github_pat_",), r"github_pat_[A-Za-z0-9_]{36,255}+"),
    Provider(
        "GITLAB_TOKEN",
        (
            "glpat-",
            "gldt-",
            "glrt-",
            "glrtr-",
            "glptt-",
            "glcbt-",
            "glft-",
            "glimt-",
            "glagent-",
            "gloas-",
            "glsoat-",
            "glffct-",
            "glwt-",
        ),
        r"gl(?:pat|dt|rt|rtr|ptt|cbt|ft|imt|agent|oas|soat|ffct|wt)-[A-Za-z0-9_.=-]{19,300}+",
    ),
    Provider("GITLAB_TOKEN", ("GR1348941",), r"GR1348941[A-Za-z0-9_-]{18,64}+"),
    Provider(
        "BITBUCKET_TOKEN", ("ATBB", "ATCTT3"), _B + r"(?:ATBB[A-Za-z0-9_=.-]{24,300}+|ATCTT3[A-Za-z0-9_=.-]{50,300}+)"
    ),
    Provider("ATLASSIAN_TOKEN", ("ATATT3", "ATSTT3"), r"AT[AS]TT3[A-Za-z0-9_=.-]{50,400}+"),
    Provider("SOURCEGRAPH_TOKEN", ("sgp_",), _B + r"sgp_(?:(?:[0-9a-fA-F]{16}|local)_)?[0-9a-fA-F]{40}" + _E),
    Provider("NPM_TOKEN", ("npm_",), _B + r"npm_[A-Za-z0-9]{36,64}+"),
    Provider("PYPI_TOKEN", ("pypi-AgE",), r"pypi-AgE[A-Za-z0-9_-]{40,1000}+"),
    Provider("RUBYGEMS_KEY", ("rubygems_",), r"rubygems_[0-9a-f]{48}"),
    Provider("CRATES_IO_TOKEN", ("cio",), _B + r"cio[A-Za-z0-9]{32}" + _E),
    Provider("NUGET_KEY", ("oy2",), _B + r"oy2[a-z0-9]{43}" + _E),
    Provider("CLOJARS_TOKEN", ("CLOJARS_",), r"CLOJARS_[0-9a-f]{56,64}+"),
    Provider("DOCKER_TOKEN", ("dckr_pat_", "dckr_oat_"), r"dckr_[po]at_[A-Za-z0-9_-]{24,64}+"),
    Provider(
        "ARTIFACTORY_KEY",
        ("AKCp", "cmVmd"),
        _B + r"(?:AKCp[A-Za-z0-9]{60,80}+|cmVmdGtuOj[A-Za-z0-9]{50,70}+|cmVmd[A-Za-z0-9]{59})" + _E,
    ),
    Provider("CIRCLECI_TOKEN", ("CCIPAT_", "CCIPRJ_"), r"CCIP(?:AT|RJ)_[A-Za-z0-9]{16,32}+_[0-9a-f]{32,64}+"),
    Provider("BUILDKITE_TOKEN", ("bkua_", "bkct_", "bkaj_", "bkat_"), _B + r"bk(?:ua|ct|aj|at)_[A-Za-z0-9_-]{32,64}+"),
    Provider("SONAR_TOKEN", ("squ_", "sqp_", "sqa_"), _B + r"sq[upa]_[0-9a-f]{40}" + _E),
    Provider("POSTMAN_KEY", ("PMAK-",), r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    Provider("README_KEY", ("rdme_",), _B + r"rdme_[a-z0-9]{70}"),
    Provider("SNYK_TOKEN", ("snyk_uat.", "snyk_sat."), r"snyk_[us]at\.[0-9a-f]{8}\.[A-Za-z0-9_.-]{30,200}+"),
)

_CLOUDS: Final = (
    Provider(
        "AWS_ACCESS_KEY",
        ("AKIA", "ASIA", "ABIA", "ACCA"),
        r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    ),
    # The secret that follows its id, as in the console's CSV download (AWS IAM user guide, "Managing access keys").
    Provider(
        "AWS_SECRET_KEY",
        ("AKIA", "ASIA"),
        r"(?<=(?:AKIA|ASIA)[A-Z0-9]{16})[\s,;:|/\"']{1,6}([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
    ),
    Provider(
        "AWS_BEDROCK_KEY",
        ("ABSK", "bedrock-api-key-"),
        r"(?:(?<![A-Za-z0-9])ABSK[A-Za-z0-9+/]{100,280}+={0,2}|bedrock-api-key-[A-Za-z0-9+/=_-]{20,2000}+)",
    ),
    Provider("GOOGLE_API_KEY", ("AIza",), _B + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    Provider("GOOGLE_OAUTH_TOKEN", ("ya29.",), _B + r"ya29\.[A-Za-z0-9_.-]{20,1000}+"),
    Provider("GOOGLE_OAUTH_SECRET", ("GOCSPX-",), r"GOCSPX-[A-Za-z0-9_-]{24,40}+"),
    Provider("GOOGLE_REFRESH_TOKEN", ("1//0",), r"(?<![A-Za-z0-9/])1//0[A-Za-z0-9_-]{30,200}+"),
    Provider("AZURE_CLIENT_SECRET", ("Q~",), r"(?<![A-Za-z0-9_~.-])[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,40}+"),
    # Fixed marks that Azure puts into its keys (Microsoft, "common annotated security keys").
    Provider(
        "AZURE_KEY",
        ("+ASt", "+AEh", "+ARm", "ACDb"),
        r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{33,76}(?:\+ASt|\+AEh|\+ARm|ACDb)[A-Za-z0-9+/]{4,8}={1,2}",
    ),
    Provider(
        "AZURE_KEY",
        ("AzSe", "AzCa", "AzFu"),
        r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{33,44}(?:AzSe|AzCa|AzFu)[A-Za-z0-9+/_-]{5,8}={0,2}",
    ),
    Provider("AZURE_DEVOPS_TOKEN", ("AZDO",), r"(?<![A-Za-z0-9])[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}" + _E),
    Provider("DIGITALOCEAN_TOKEN", ("dop_v1_", "doo_v1_", "dor_v1_"), r"do[por]_v1_[0-9a-f]{64}"),
    Provider("HEROKU_KEY", ("HRKU-",), r"HRKU-(?:AA[A-Za-z0-9_-]{50,64}+|" + _UUID + ")"),
    Provider("CLOUDFLARE_KEY", ("v1.0-",), _B + r"v1\.0-[0-9a-f]{24}-[0-9a-f]{146}"),
    Provider(
        "VERCEL_TOKEN",
        ("vercel_blob_rw_", "vck_", "vcp_", "vci_", "vca_", "vcr_"),
        _B + r"(?:vercel_blob_rw_[A-Za-z0-9_]{30,80}+|vc[kpiar]_[A-Za-z0-9]{24,80}+)",
    ),
    Provider("NETLIFY_TOKEN", ("nfp_", "nfc_", "nfo_", "nfb_", "nfu_"), _B + r"nf[pcobu]_[A-Za-z0-9_]{36,64}+"),
    Provider(
        "FLY_TOKEN",
        ("fo1_", "fm1", "fm2_"),
        _B + r"(?:fo1_[A-Za-z0-9_-]{40,64}+|fm(?:1[ar]|2)_[A-Za-z0-9+/]{60,4000}+={0,3})",
    ),
    Provider("RENDER_KEY", ("rnd_",), _B + r"rnd_[A-Za-z0-9]{26,40}+"),
    Provider("SCALINGO_TOKEN", ("tk-us-",), _B + r"tk-us-[A-Za-z0-9_-]{48}"),
    Provider("ALIBABA_KEY", ("LTAI",), _B + r"LTAI[A-Za-z0-9]{12,24}" + _E),
    Provider("TENCENT_KEY", ("AKID",), _B + r"AKID[A-Za-z0-9]{32}" + _E),
    Provider(
        "YANDEX_KEY",
        ("AQVN", "t1.9", "y0_", "YCAJ", "YCM"),
        _B
        + r"(?:AQVN[A-Za-z0-9_-]{35,38}|t1\.9[A-Za-z0-9_-]{60,800}+={0,2}\.[A-Za-z0-9_-]{80,90}={0,2}|y0_[A-Za-z0-9_-]{50,62}|YC[A-Za-z0-9_-]{38})"
        + _E,
    ),
    Provider("TAILSCALE_KEY", ("tskey-",), r"tskey-[a-z]{2,12}-[A-Za-z0-9]{8,24}(?:-[A-Za-z0-9]{16,64}+)?"),
    Provider("NGROK_TOKEN", ("ngrok", "authtoken", "NGROK"), _B + r"[12][A-Za-z0-9]{26}_[0-9][A-Za-z0-9]{20}" + _E),
    Provider("PULUMI_TOKEN", ("pul-",), _B + r"pul-[0-9a-f]{40}" + _E),
    Provider("TERRAFORM_TOKEN", (".atlasv1.",), r"(?<![A-Za-z0-9])[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}"),
    Provider("VAULT_TOKEN", ("hvs.", "hvb.", "hvr."), _B + r"hv[sbr]\.[A-Za-z0-9_-]{24,400}+"),
    Provider(
        "VAULT_TOKEN", ("s.",), r"(?<![A-Za-z0-9_.\]\)])s\.(?=[A-Za-z]{0,23}[0-9])[A-Za-z0-9]{24}(?![A-Za-z0-9_.(])"
    ),
    Provider(
        "DOPPLER_TOKEN",
        ("dp.pt.", "dp.st.", "dp.ct.", "dp.sa.", "dp.scim.", "dp.audit."),
        _B + r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}" + _E,
    ),
    Provider("OPENSHIFT_TOKEN", ("sha256~",), r"sha256~[A-Za-z0-9_-]{43}"),
    Provider("OCTOPUS_KEY", ("API-",), _B + r"API-[A-Z0-9]{26}" + _E),
    Provider("INFRACOST_KEY", ("ico-",), _B + r"ico-[A-Za-z0-9]{32}" + _E),
    Provider("PREFECT_KEY", ("pnu_", "pnb_"), _B + r"pn[ub]_[A-Za-z0-9]{36}" + _E),
    Provider("DEFINED_NETWORKING_KEY", ("dnkey-",), r"dnkey-[A-Za-z0-9=_-]{26}-[A-Za-z0-9=_-]{52}"),
    Provider(
        "HARNESS_TOKEN", ("pat.", "sat."), _B + r"[ps]at\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}" + _E
    ),
)

_MODELS: Final = (
    Provider("ANTHROPIC_KEY", ("sk-ant-",), r"sk-ant-[A-Za-z0-9_-]{24,255}+"),
    Provider("OPENROUTER_KEY", ("sk-or-",), r"sk-or-v\d-[0-9a-f]{48,64}"),
    Provider("LANGFUSE_KEY", ("sk-lf-",), r"sk-lf-" + _UUID),
    Provider(
        "OPENAI_KEY",
        ("sk-proj-", "sk-svcacct-", "sk-admin-", "sk-None-"),
        r"sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{30,255}+",
    ),
    # Also the form of DeepSeek, Moonshot, DashScope and others that follow OpenAI's.
    Provider(
        "OPENAI_KEY", ("sk-",), r"(?<![A-Za-z0-9_-])sk-(?=[A-Za-z]{0,127}[0-9])[A-Za-z0-9]{32,128}+(?![A-Za-z0-9_-])"
    ),
    Provider("GROQ_KEY", ("gsk_",), _B + r"gsk_[A-Za-z0-9]{40,64}+"),
    Provider("XAI_KEY", ("xai-",), _B + r"xai-[A-Za-z0-9]{60,128}+"),
    Provider("HUGGINGFACE_TOKEN", ("hf_", "api_org_"), _B + r"(?:hf|api_org)_[A-Za-z0-9]{30,64}" + _E),
    Provider("REPLICATE_TOKEN", ("r8_",), _B + r"r8_[A-Za-z0-9]{37}" + _E),
    Provider("PERPLEXITY_KEY", ("pplx-",), _B + r"pplx-[A-Za-z0-9]{40,64}+"),
    Provider("FIREWORKS_KEY", ("fw_",), _B + r"fw_[A-Za-z0-9]{22,48}" + _E),
    Provider("TOGETHER_KEY", ("tgp_v1_",), r"tgp_v1_[A-Za-z0-9_-]{36,64}+"),
    Provider("NVIDIA_KEY", ("nvapi-",), r"nvapi-[A-Za-z0-9_-]{50,128}+"),
    Provider("CEREBRAS_KEY", ("csk-",), _B + r"csk-[a-z0-9]{40,64}+"),
    Provider("LANGSMITH_KEY", ("lsv2_", "ls__"), _B + r"(?:lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}|ls__[0-9a-f]{32})"),
    Provider("PINECONE_KEY", ("pcsk_",), r"pcsk_[A-Za-z0-9_]{50,100}+"),
    Provider("WANDB_KEY", ("wandb_v1_",), r"wandb_v1_[A-Za-z0-9_]{40,128}+"),
    Provider("TAVILY_KEY", ("tvly-",), r"tvly-(?:dev-|prod-)?[A-Za-z0-9_-]{24,64}+"),
    Provider("ELEVENLABS_KEY", ("sk_",), _B + r"sk_[0-9a-f]{48}" + _E),
    Provider("CLICKHOUSE_KEY", ("4b1d",), _B + r"4b1d[A-Za-z0-9]{38}" + _E),
)

_MONEY_AND_SHOPS: Final = (
    Provider(
        "STRIPE_KEY",
        ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "sk_prod_", "rk_prod_", "sk_org_"),
        r"(?<![A-Za-z0-9])[sr]k_(?:live|test|prod|org_live|org_test)_[A-Za-z0-9]{16,255}+",
    ),
    Provider("STRIPE_WEBHOOK_SECRET", ("whsec_",), r"whsec_[A-Za-z0-9+/=]{24,128}+"),
    Provider(
        "SQUARE_TOKEN",
        ("sq0atp-", "sq0csp-", "EAAA"),
        _B + r"(?:sq0(?:at|cs)p-[A-Za-z0-9_-]{22,60}+|EAAA[A-Za-z0-9_-]{56,64}" + _E + ")",
    ),
    Provider(
        "BRAINTREE_TOKEN", ("access_token$",), r"access_token\$(?:production|sandbox)\$[a-z0-9]{13,20}\$[0-9a-f]{32}"
    ),
    Provider("PLAID_TOKEN", ("access-",), r"access-(?:sandbox|development|production)-" + _UUID),
    Provider(
        "SHOPIFY_TOKEN", ("shpat_", "shpca_", "shppa_", "shpss_", "shpua_"), r"shp(?:at|ca|pa|ss|ua)_[0-9a-fA-F]{32}"
    ),
    Provider("FLUTTERWAVE_KEY", ("FLWSECK",), r"FLWSECK(?:_TEST)?-[0-9A-Za-z]{12,40}(?:-X)?"),
    Provider("XENDIT_KEY", ("xnd_",), r"xnd_(?:production|development)_[A-Za-z0-9]{40,80}+"),
    Provider("PADDLE_KEY", ("pdl_",), r"pdl_(?:live|sdbx|ntfset)_[A-Za-z0-9_/+]{40,90}+"),
    Provider("SHIPPO_TOKEN", ("shippo_",), r"shippo_(?:live|test)_[0-9a-fA-F]{40}"),
    Provider("EASYPOST_KEY", ("EZAK", "EZTK"), _B + r"EZ[AT]K[A-Za-z0-9]{54}" + _E),
    Provider("DUFFEL_TOKEN", ("duffel_",), r"duffel_(?:test|live)_[A-Za-z0-9_=-]{43}"),
    Provider("RAZORPAY_KEY", ("rzp_",), r"rzp_(?:live|test)_[A-Za-z0-9]{14}"),
)

_MESSAGES: Final = (
    Provider(
        "SLACK_TOKEN",
        ("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xoxc-", "xoxd-", "xoxe."),
        r"xox[abceoprsd][.-](?:xox[bp]-)?[A-Za-z0-9%/+=-]{20,400}+",
    ),
    Provider("SLACK_TOKEN", ("xapp-",), r"xapp-\d-[A-Z0-9]{8,16}-\d{8,16}-[0-9a-f]{40,80}+"),
    Provider(
        "SLACK_WEBHOOK",
        ("hooks.slack.com/",),
        r"(?:https?://)?hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/_-]{30,120}+",
    ),
    Provider(
        "DISCORD_TOKEN",
        (".",),
        r"(?<![A-Za-z0-9_.-])[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,45}(?![A-Za-z0-9_-])",
    ),
    Provider(
        "DISCORD_WEBHOOK",
        ("/api/webhooks/",),
        r"https://[a-z.]{0,8}discord(?:app)?\.com/api/webhooks/\d{15,22}/[A-Za-z0-9_-]{50,90}+",
    ),
    Provider(
        "TEAMS_WEBHOOK",
        ("webhook.office.com",),
        r"https://[a-z0-9-]{1,63}\.webhook\.office\.com/webhookb2/[0-9a-fA-F@-]{60,90}/IncomingWebhook/[0-9a-f]{32}/[0-9a-f-]{36}(?:/[\w-]{1,64})?",
    ),
    Provider(
        "TELEGRAM_TOKEN", (":AA",), r"(?<![0-9A-Za-z])(?:bot)?[0-9]{8,10}:AA[A-Za-z0-9_-]{32,36}(?![A-Za-z0-9_-])"
    ),
    Provider("TWILIO_KEY", ("SK", "AC"), _B + r"(?:SK|AC)[0-9a-f]{32}" + _E),
    Provider("SENDGRID_KEY", ("SG.",), _B + r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}+"),
    Provider("MAILGUN_KEY", ("key-",), _B + r"(?:pub)?key-[0-9a-f]{32}" + _E),
    Provider("MAILGUN_KEY", ("mailgun", "Mailgun", "MAILGUN"), _B + r"[0-9a-f]{32}-[0-9a-f]{8}-[0-9a-f]{8}" + _E),
    Provider("MAILCHIMP_KEY", ("-us",), _B + r"[0-9a-f]{32}-us[0-9]{1,2}" + _E),
    Provider("MANDRILL_KEY", ("md-",), _B + r"md-[A-Za-z0-9_-]{22}(?![A-Za-z0-9_-])"),
    Provider("BREVO_KEY", ("xkeysib-", "xsmtpsib-"), r"x(?:key|smtp)sib-[0-9a-f]{64}-[A-Za-z0-9]{16}"),
    Provider("RESEND_KEY", ("re_",), _B + r"re_[A-Za-z0-9]{8}_[A-Za-z0-9]{24}" + _E),
    Provider("TWITCH_TOKEN", ("oauth:",), r"oauth:[a-z0-9]{30}" + _E),
    Provider("FACEBOOK_TOKEN", ("EAA",), _B + r"EAA[A-Za-z0-9]{90,300}+"),
    Provider("FACEBOOK_TOKEN", ("|",), r"(?<![0-9])[0-9]{15,16}\|[A-Za-z0-9_-]{27}(?![A-Za-z0-9_-])"),
    Provider("TWITTER_TOKEN", ("AAAAAAAAAAAAAAAAAAAA",), _B + r"A{20,22}[A-Za-z0-9%]{70,120}+"),
    Provider("LINKEDIN_SECRET", ("WPL_AP",), r"WPL_AP[01]\.[A-Za-z0-9=.+/]{16,40}+"),
)

_SERVICES: Final = (
    Provider("GRAFANA_TOKEN", ("glsa_", "glc_"), _B + r"(?:glsa_[A-Za-z0-9]{32}_[0-9A-Fa-f]{8}|glc_[A-Za-z0-9+/]{32,400}+={0,3})"),
    Provider("GRAFANA_TOKEN", ("eyJrIjoi",), _B + r"eyJrIjoi[A-Za-z0-9]{60,400}+={0,3}"),
    Provider("NEWRELIC_KEY", ("NRAK-", "NRII-", "NRJS-", "NRIQ-", "NRRA-", "NRAL"), r"NR(?:AK|II|JS|IQ|RA)-[A-Za-z0-9_-]{19,48}+|(?<![0-9a-f])[0-9a-f]{36}NRAL"),
    Provider("SENTRY_TOKEN", ("sntrys_", "sntryu_"), r"sntry[su]_[A-Za-z0-9+/=_]{60,500}+"),
    Provider("DYNATRACE_TOKEN", ("dt0",), _B + r"dt0[a-z][0-9]{2}\.[A-Z0-9]{24}\.[A-Z0-9]{64}" + _E),
    Provider("HONEYCOMB_KEY", ("hcaik_", "hcbik_", "hcxik_", "hcalk_", "hcxmk_"), r"hc[abx][il]?[m]?k_[a-z0-9]{50,64}+"),
    Provider("POSTHOG_KEY", ("phx_", "phs_"), _B + r"ph[xs]_[A-Za-z0-9]{32,64}+"),
    Provider("LAUNCHDARKLY_KEY", ("sdk-", "api-", "mob-"), _B + r"(?:sdk|api|mob)-" + _UUID),
    Provider("LINEAR_KEY", ("lin_api_", "lin_oauth_", "lin_wh_"), r"lin_(?:api|oauth|wh)_[A-Za-z0-9]{32,64}+"),
    Provider("NOTION_TOKEN", ("ntn_", "secret_"), _B + r"(?:ntn_[0-9]{9,11}[A-Za-z0-9]{33,37}|secret_(?=[A-Za-z]{0,42}[0-9])[A-Za-z0-9]{43})" + _E),
    Provider("FIGMA_TOKEN", ("figd_", "figdr_"), r"figdr?_[A-Za-z0-9_-]{36,64}+"),
    Provider("AIRTABLE_TOKEN", ("pat",), _B + r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}" + _E),
    Provider("ASANA_TOKEN", ("/",), r"(?<![0-9/])[0-2]/[0-9]{15,17}(?:/[0-9]{15,17})?:[0-9a-f]{32}" + _E),
    Provider("TYPEFORM_TOKEN", ("tfp_",), _B + r"tfp_[A-Za-z0-9_.=-]{40,70}+"),
    Provider("CONTENTFUL_TOKEN", ("CFPAT-",), r"CFPAT-[A-Za-z0-9_-]{40,50}+"),
    Provider("HUBSPOT_TOKEN", ("pat-na", "pat-eu", "pat-ap"), r"pat-(?:na|eu|ap)[0-9]-" + _UUID),
    Provider("INTERCOM_TOKEN", ("dG9rO",), _B + r"dG9rO[A-Za-z0-9+/]{50,80}+={0,2}"),
    Provider("MAPBOX_TOKEN", ("sk.eyJ",), _B + r"sk\.eyJ[A-Za-z0-9_-]{40,400}+\.[A-Za-z0-9_-]{20,30}"),
    Provider("MAXMIND_KEY", ("_mmk",), r"(?<![A-Za-z0-9])[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk"),
    Provider("FRAMEIO_TOKEN", ("fio-u-",), r"fio-u-[A-Za-z0-9_=-]{64}"),
    Provider("DROPBOX_TOKEN", ("sl.",), _B + r"sl\.(?:u\.)?[A-Za-z0-9_=-]{100,1500}+"),
    Provider("ADOBE_SECRET", ("p8e-",), _B + r"p8e-[A-Za-z0-9_-]{32}" + _E),
    Provider("RAPIDAPI_KEY", ("msh",), _B + r"[0-9a-f]{10}msh[0-9a-f]{15}p1[0-9a-f]{5}jsn[0-9a-f]{12}" + _E),
    Provider("ONEPASSWORD_TOKEN", ("ops_eyJ",), r"ops_eyJ[A-Za-z0-9+/_-]{100,4000}+={0,3}"),
    Provider("ONEPASSWORD_KEY", ("A3-",), _B + r"A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})-[A-Z0-9]{5}-[A-Z0-9]{5}-[A-Z0-9]{5}" + _E),
    Provider("AGE_KEY", ("AGE-SECRET-KEY-1",), r"AGE-SECRET-KEY-1[A-Z0-9]{50,60}"),
    Provider("DATABRICKS_TOKEN", ("dapi", "dose", "dkea"), _B + r"(?:dapi|dose|dkea)[0-9a-f]{32}(?:-[0-9])?" + _E),
    Provider("SUPABASE_KEY", ("sbp_", "sb_secret_"), _B + r"(?:sbp_(?:v0_)?[0-9a-f]{40}|sb_secret_[A-Za-z0-9_-]{24,64}+)"),
    Provider("PLANETSCALE_KEY", ("pscale_",), r"pscale_(?:tkn|oauth|pw)_[A-Za-z0-9_=.-]{32,64}+"),
    Provider("NEON_KEY", ("napi_",), _B + r"napi_[a-z0-9]{60,70}" + _E),
    Provider("MONGODB_ATLAS_SECRET", ("mdb_sa_sk_",), r"mdb_sa_sk_[A-Za-z0-9_-]{30,64}+"),
    Provider("INTRA42_SECRET", ("s-s4t2",), r"s-s4t2(?:ud|af)-[0-9a-f]{64}"),
)  # fmt: skip

PROVIDERS: Final = (*_CODE_HOSTS, *_CLOUDS, *_MODELS, *_MONEY_AND_SHOPS, *_MESSAGES, *_SERVICES)


# Flat, since a nested test costs 100 us a text instead of 15.
_BY_LITERAL: Final = tuple(
    (literal, index) for index, provider in enumerate(PROVIDERS) for literal in provider.literals
)


def find_provider_tokens(text: str) -> Iterator[Finding]:
    """Every token of a known provider."""
    tried = -1
    for index in [index for literal, index in _BY_LITERAL if literal in text]:
        if index == tried:
            continue
        tried = index
        provider = PROVIDERS[index]
        for match in _compiled(provider.pattern).finditer(text):
            if not _is_sample(match[0]):
                start, end = match.span(match.lastindex or 0)
                yield Finding(provider.kind, start, end, PROVIDER_RANK)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _is_sample(token: str) -> bool:
    return len(set(token[4:])) < _MIN_DISTINCT_CHARS or (token.endswith("EXAMPLE") and stands_for_a_secret(token))
