"""langchain's standard integration tests of chat models, for ChatOpenAI on a running server. ARLE_ADDRESS has its address."""

import os

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestArle(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        address = os.environ["ARLE_ADDRESS"]
        # Which words follow is left to the model; that there is one call is not.
        asked = {"seed": 1, "max_tokens": 300, "model_kwargs": {"parallel_tool_calls": False}, "stream_usage": True}
        return {"model": "m", "base_url": f"{address}/v1", "api_key": "none", "timeout": 300, **asked}

    @property
    def supports_json_mode(self):
        return True
