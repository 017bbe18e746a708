# What type checkers see of __init__.py, which imports nothing until a name is used.
from nemo_steerlm.client.chat import Chat as Chat
from nemo_steerlm.client.chat import get_answer as get_answer
from nemo_steerlm.core.attributes import Attribute as Attribute
from nemo_steerlm.core.attributes import AttributeSchema as AttributeSchema
from nemo_steerlm.core.attributes import preset as preset
from nemo_steerlm.core.conversation import Conversation as Conversation
from nemo_steerlm.core.conversation import Turn as Turn
from nemo_steerlm.core.errors import SteerLMError as SteerLMError
from nemo_steerlm.core.template import ChatTokens as ChatTokens
from nemo_steerlm.core.template import Template as Template

__version__: str
