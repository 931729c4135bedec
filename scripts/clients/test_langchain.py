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
        return {"model": "m", "base_url": f"{address}/v1", "api_key": "none", "max_tokens": 300, "timeout": 300, "stream_usage": True}

    @property
    def supports_json_mode(self):
        return True
